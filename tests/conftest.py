"""Every test may import Detectron2 directly, and computes on one thread so that it is repeatable."""

import torch

from scratch_vs_pretrain import _detectron2

_detectron2.prepare()
torch.set_num_threads(1)
