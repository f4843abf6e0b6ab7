"""Data sets, and the stream of training batches."""

from scratch_vs_pretrain import _detectron2

_detectron2.prepare()
