"""Paired scratch/pretrained detection experiments over Detectron2."""

__version__ = "0.2.0"

from scratch_vs_pretrain import _detectron2

_detectron2.prepare_on_import()
