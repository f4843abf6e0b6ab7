"""Runs a model over the test data sets of a config and scores it."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from torch import nn

from scratch_vs_pretrain.config import augmentation_problems
from scratch_vs_pretrain.data.loading import load_test_records
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.coco_score import NUMBERS, score
from scratch_vs_pretrain.evaluation.error_types import error_costs
from scratch_vs_pretrain.evaluation.ground_truth import check_ground_truth, load_ground_truth
from scratch_vs_pretrain.evaluation.others import WithOthers, check_names, others_of
from scratch_vs_pretrain.evaluation.tta import with_augmentation
from scratch_vs_pretrain.pictures import image_errors, register_deep_images
from scratch_vs_pretrain.reproducibility import random_states, restore_random_states
from scratch_vs_pretrain.run_folder import RunFolder, write_json

logger = logging.getLogger(__name__)

register_deep_images()

# What Detectron2's tools/train_net.py adds to the name of a task scored with test augmentation.
TTA = "_TTA"


def tasks_of(cfg: Any) -> tuple[str, ...]:
    """Returns the tasks that a config's model is scored on."""
    asked = {"bbox": True, "segm": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON}
    return tuple(task for task, on in asked.items() if on)


def check_test_sets(cfg: Any) -> None:
    """Raises UserError where an evaluation of a config will not be possible: no test data set, one
    without the ground truth that a task needs, or test augmentation that cannot be done."""
    if problems := augmentation_problems(cfg):
        raise UserError("; ".join(problems))
    check_names(cfg)
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty; name a data set to evaluate on")
    for name in cfg.DATASETS.TEST:
        check_ground_truth(name, tasks_of(cfg), cfg.TEST.KEYPOINT_OKS_SIGMAS, cfg.SVP.MAX_DROPPED)


def evaluate_model(
    cfg: Any,
    model: nn.Module,
    progress: Callable[[Iterable], Iterable] | None = None,
    test_aug: bool = False,
    keep: Callable[[str, list[dict[str, Any]]], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Evaluates a model on every data set of DATASETS.TEST; every process must call it.

    Training goes on afterwards as if nothing had happened: the mode of each module and all random
    states are put back.

    Args:
        model: returns Detectron2's ``{"instances": ...}`` for each image.
        progress: wraps the iterable of batches, in the main process only.
        test_aug: evaluate a second time with TEST.AUG, if the config has it; those tasks are called
            ``bbox_TTA`` and so on, as Detectron2's.
        keep: is given the name of each data set and the COCO results on it, those without TEST.AUG,
            in the main process.

    Returns:
        One evaluation for each data set, and their :func:`flat_metrics`; both are empty in all
        processes but the main one.
    """
    if comm.is_main_process():  # which alone reads the ground truth
        check_test_sets(cfg)
    evaluations = []
    ways = (False, True) if test_aug and cfg.TEST.AUG.ENABLED else (False,)
    for name in cfg.DATASETS.TEST:
        start = time.perf_counter()
        tasks: dict[str, Any] = {}
        for augmented in ways:
            evaluator = CocoScoreEvaluator(name, tasks_of(cfg), cfg.TEST.KEYPOINT_OKS_SIGMAS)
            scored = WithOthers(evaluator, others_of(cfg, name))
            found = run_inference(cfg, model, name, scored, progress, test_aug=augmented)
            tasks |= {task + TTA * augmented: numbers for task, numbers in found.items()}
            if keep and not augmented and comm.is_main_process():
                keep(name, evaluator.results)
        if comm.is_main_process():
            evaluations.append(
                {
                    "dataset": name,
                    "images": evaluator.images,
                    "seconds": round(time.perf_counter() - start, 3),
                    "tasks": tasks,
                }
            )
    return evaluations, flat_metrics(evaluations)


def flat_metrics(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns all numbers under Detectron2's names, such as ``bbox/AP75``, but for those without
    ground truth; those of the second and further data sets begin with the data set's name."""
    return {
        f"{evaluation['dataset'] + '/' if position else ''}{task}/{number}": numbers[number]
        for position, evaluation in enumerate(evaluations)
        for task, numbers in evaluation["tasks"].items()
        for number in NUMBERS.get(task.removesuffix(TTA), numbers)
        if numbers[number] is not None
    }


def write_evaluation(
    folder: RunFolder, iteration: int, evaluations: Sequence[Mapping[str, Any]]
) -> Path:
    """Writes what :func:`evaluate_model` returned after `iteration` completed iterations.

    The first data set is the file's main one; further ones follow under ``others``.
    """
    first, *others = evaluations
    content = {"format": 1, "iteration": iteration, **first} | (
        {"others": others} if others else {}
    )
    folder.evaluations.mkdir(parents=True, exist_ok=True)
    path = folder.evaluation_file(iteration)
    write_json(path, content)
    return path


def run_inference(
    cfg: Any,
    model: nn.Module,
    dataset_name: str,
    evaluator: DatasetEvaluator,
    progress: Callable[[Iterable], Iterable] | None = None,
    test_aug: bool = True,
) -> dict[str, Any]:
    """Feeds a data set to a model and the outputs to `evaluator`, and returns what that returns."""
    states = random_states()
    try:
        mapper = functools.partial(_mapped, DatasetMapper(cfg, is_train=False))
        # The loader draws a seed for its workers.
        batches: Any = build_detection_test_loader(
            load_test_records(dataset_name), mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
        )
        if progress is not None and comm.is_main_process():
            batches = progress(batches)
        with _evaluation_mode(model), with_augmentation(cfg, model, test_aug) as detector:
            return inference_on_dataset(detector, batches, evaluator)
    finally:
        restore_random_states(states)


class CocoScoreEvaluator(DatasetEvaluator):
    """Scores a model's outputs with :mod:`scratch_vs_pretrain.evaluation.coco_score`.

    In contrast to Detectron2's COCOEvaluator it changes none of the model's outputs, gives every
    number COCO defines, 0 where nothing was detected, and writes no file.

    Attributes:
        images, results: how many images were processed, and their COCO results; after
            :meth:`evaluate` those of all processes.
    """

    def __init__(
        self, dataset_name: str, tasks: Sequence[str], keypoint_sigmas: Sequence[float] = ()
    ) -> None:
        """Scores none of the tasks of a set without annotations; sigmas are COCO's if empty."""
        self._dataset_name = dataset_name
        self._tasks = tuple(tasks)
        self._keypoint_sigmas = tuple(keypoint_sigmas) or None
        self.reset()

    def reset(self) -> None:
        self.images = 0
        self.results: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            if instances.has("pred_keypoints"):
                # instances_to_coco_json subtracts half a pixel in place.
                instances.pred_keypoints = instances.pred_keypoints.clone()
            self.results += instances_to_coco_json(instances, image["image_id"])
            self.images += 1

    def evaluate(self) -> dict[str, Any]:
        """Returns each task's entry of an evaluation file; empty but in the main process."""
        gathered = comm.gather((self.images, self.results))
        if not comm.is_main_process():
            return {}
        self.images = sum(images for images, _ in gathered)
        self.results = self._with_dataset_categories([one for _, part in gathered for one in part])
        entries: dict[str, Any] = {}
        for task in self._tasks:
            ground_truth = load_ground_truth(self._dataset_name, task)
            entries[task] = score(ground_truth, self.results, task, self._keypoint_sigmas)
            summary = {name: entries[task][name] for name in NUMBERS[task]}
            logger.info("%s of %s: %s", task, self._dataset_name, summary)
            if task == "bbox":
                entries[task]["errors"] = error_costs(ground_truth, self.results)
        return entries

    def _with_dataset_categories(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Replaces the model's classes by the category ids of the annotation file."""
        categories = load_ground_truth(self._dataset_name)["categories"]
        # As Detectron2 numbers them, by ascending id.
        ids = dict(enumerate(sorted(category["id"] for category in categories)))
        try:
            return [{**r, "category_id": ids[r["category_id"]]} for r in results]
        except KeyError as error:
            raise UserError(
                f"{self._dataset_name}: the model predicts class {error} but the data set has "
                f"{len(ids)}; set NUM_CLASSES of its heads to {len(ids)}"
            ) from None


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts each module's own mode back, even after an error; Detectron2's context does not."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _mapped(mapper: DatasetMapper, record: dict[str, Any]) -> dict[str, Any]:
    with image_errors(record["file_name"]):
        return mapper(record)
