"""Paired scratch/pretrained detection experiments over Detectron2."""

__version__ = "0.1.0"
