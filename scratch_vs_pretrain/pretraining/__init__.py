"""Classifier pre-training of a backbone."""

from scratch_vs_pretrain import _detectron2

_detectron2.prepare()
