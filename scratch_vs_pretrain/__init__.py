"""Paired scratch/pretrained detection experiments over Detectron2."""
