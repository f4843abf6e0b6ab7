"""One run: trainer, hooks, evaluation, checkpoints; classifier pre-training."""

from scratch_vs_pretrain import _detectron2

_detectron2.prepare()
