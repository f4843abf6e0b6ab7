"""What is registered with Detectron2, and what is checked about a built model."""

from scratch_vs_pretrain import _detectron2

_detectron2.prepare()
