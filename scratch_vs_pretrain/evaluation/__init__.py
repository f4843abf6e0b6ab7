"""Scores of detections against ground truth."""

from scratch_vs_pretrain import _detectron2

_detectron2.prepare()
