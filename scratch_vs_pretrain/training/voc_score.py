"""VOC's AP as Detectron2's evaluator computes it, beside COCO's."""

from __future__ import annotations

import math
import warnings
from typing import Any

from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm

# AP50 is the VOC benchmark's; of VOC 2007 with its 11-point metric.
NUMBERS = ("AP", "AP50", "AP75")


class VocScoreEvaluator(DatasetEvaluator):
    """Adds the task ``voc`` to those of another evaluator.

    Its numbers are percent, and None where a class has no object.
    """

    def __init__(self, dataset_name: str, other: DatasetEvaluator) -> None:
        self._other = other
        self._voc = PascalVOCDetectionEvaluator(dataset_name)
        self.reset()

    def reset(self) -> None:
        self._other.reset()
        self._voc.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self._other.process(inputs, outputs)
        self._voc.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        """Returns each task's entry of an evaluation file; empty but in the main process."""
        tasks = self._other.evaluate()
        with warnings.catch_warnings():
            # It divides by the number of objects of each class.
            warnings.simplefilter("ignore", RuntimeWarning)
            found = self._voc.evaluate()
        if not comm.is_main_process():
            return {}
        numbers = {name: float(found["bbox"][name]) for name in NUMBERS}
        voc = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        return {**tasks, "voc": voc}
