"""A mapper, an evaluator and an optimizer of a user's own."""

import torch
from detectron2.data import DatasetMapper
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from scratch_vs_pretrain.evaluation.others import EVALUATORS
from scratch_vs_pretrain.training.recipe import MAPPERS, OPTIMIZERS


@MAPPERS.register()
class NoisyMapper(DatasetMapper):
    """Adds noise to each training picture."""

    def __call__(self, record):
        sample = super().__call__(record)
        noise = torch.randint(-8, 9, sample["image"].shape)
        sample["image"] = (sample["image"] + noise).clamp(0, 255).to(torch.uint8)
        return sample


@EVALUATORS.register()
class Counting(DatasetEvaluator):
    """How many objects are detected in a picture."""

    def __init__(self, cfg, dataset_name):
        self.reset()

    def reset(self):
        self.counts = []

    def process(self, inputs, outputs):
        self.counts += [len(output["instances"]) for output in outputs]

    def evaluate(self):
        counts = [count for part in comm.gather(self.counts) for count in part]
        return {"objects": sum(counts) / len(counts)} if counts else None


@OPTIMIZERS.register()
def NesterovSGD(cfg, model):
    parameters = [one for one in model.parameters() if one.requires_grad]
    return torch.optim.SGD(parameters, lr=cfg.SOLVER.BASE_LR, momentum=0.9, nesterov=True)
