"""Runs a model over the test data sets of a config, with ``TEST.AUG`` or without, scores it, and
writes the scores and the detections in a few pictures."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contourpy import contour_generator
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.modeling.roi_heads.keypoint_head import keypoint_rcnn_inference
from detectron2.utils import comm
from fvcore.transforms.transform import HFlipTransform
from torch import Tensor, nn

from scratch_vs_pretrain.config import augmentation_problems
from scratch_vs_pretrain.data import loading
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.others import WithOthers, check_names, decoded, others_of
from scratch_vs_pretrain.evaluation.scores import NUMBERS, by_image, error_costs, score
from scratch_vs_pretrain.pictures import DEEP, image_errors, register_deep_images
from scratch_vs_pretrain.reproducibility import random_states, restore_random_states
from scratch_vs_pretrain.run_folder import RunFolder, write_atomically, write_json
from scratch_vs_pretrain.run_info import Detections, Found, Picture

logger = logging.getLogger(__name__)

register_deep_images()

# What Detectron2's tools/train_net.py adds to the name of a task scored with test augmentation.
TTA = "_TTA"
# Of the detections that are kept, for `svp plot --figure detections`.
PICTURES = 12
PER_PICTURE = 30
# Outlines are as exact as a printed picture of so many pixels.
OUTLINE_SIZE = 160


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
    needs = tasks_of(cfg), cfg.TEST.KEYPOINT_OKS_SIGMAS, cfg.SVP.MAX_DROPPED
    for name in cfg.DATASETS.TEST:
        loading.check_ground_truth(name, *needs)


def evaluate_model(
    cfg: Any,
    model: nn.Module,
    progress: Callable[[Iterable], Iterable] | None = None,
    test_aug: bool = False,
    keep: Callable[[str, list[dict[str, Any]]], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Evaluates a model on every data set of DATASETS.TEST; every process must call it. Training
    goes on afterwards as if nothing had happened: modes of modules and random states are put back.

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
            seconds = round(time.perf_counter() - start, 3)
            evaluation = {"dataset": name, "images": evaluator.images, "seconds": seconds}
            evaluations.append({**evaluation, "tasks": tasks})
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
    content = {"format": 1, "iteration": iteration, **first}
    if others:
        content["others"] = others
    folder.evaluations.mkdir(parents=True, exist_ok=True)
    path = folder.evaluation_file(iteration)
    write_json(path, content)
    return path


def write_detections(
    folder: RunFolder, iteration: int, dataset: str, results: Iterable[Mapping[str, Any]]
) -> None:
    """Writes the objects of the first test pictures of a run, and the best detections in them.

    `results` are COCO results, found after an iteration, with the categories of the data set.
    """
    truth = loading.load_ground_truth(dataset)
    names = {one["id"]: str(one["name"]) for one in truth["categories"]}
    objects = by_image(one for one in truth["annotations"] if not one.get("iscrowd"))
    records = loading.load_test_records(dataset)
    shown = [one for one in records if one["image_id"] in objects][:PICTURES]
    found = by_image(results)
    pictures = []
    for one in shown:
        size = (one["height"], one["width"])
        best = sorted(found[one["image_id"]], key=lambda result: -result["score"])[:PER_PICTURE]
        pictures.append(
            Picture(
                file=one["file_name"].removeprefix(DEEP),
                height=size[0],
                width=size[1],
                objects=tuple(_found(each, names, size) for each in objects[one["image_id"]]),
                detections=tuple(_found(each, names, size) for each in best),
            )
        )
    content = Detections(iteration=iteration, dataset=dataset, pictures=tuple(pictures))
    write_atomically(folder.detections_file, content.model_dump_json() + "\n")


def _found(one: Mapping[str, Any], names: Mapping[Any, str], size: tuple[int, int]) -> Found:
    """Returns an object or detection with the polygons (x, y, x, y, ...) around its mask."""
    x, y, width, height = (round(float(value), 1) for value in one["bbox"])
    lines: Sequence[Any] = ()
    if mask := one.get("segmentation"):
        step = math.ceil(max(size) / OUTLINE_SIZE)
        # With a border, so that what leaves the picture is closed.
        inside = np.pad(decoded(mask, *size)[::step, ::step], 1)
        found: Sequence[Any] = contour_generator(z=inside).lines(0.5)
        lines = [((line - 0.5) * step).ravel() for line in found]
    return Found(
        category=names[one["category_id"]],
        score=round(float(one.get("score", 1)), 3),
        box=(x, y, width, height),
        outline=tuple(tuple(round(float(value), 1) for value in line) for line in lines),
    )


def run_inference(
    cfg: Any,
    model: nn.Module,
    dataset_name: str,
    evaluator: DatasetEvaluator,
    progress: Callable[[Iterable], Iterable] | None = None,
    test_aug: bool = True,
) -> dict[str, Any]:
    """Feeds a data set to a model and the outputs to `evaluator`, and returns what that returns."""
    mapper = DatasetMapper(cfg, is_train=False)

    def mapped(record: dict[str, Any]) -> dict[str, Any]:
        with image_errors(record["file_name"]):
            return mapper(record)

    # Put back even after an error; Detectron2's context does not, nor each module's own mode.
    states, modes = random_states(), {module: module.training for module in model.modules()}
    try:
        records, workers = loading.load_test_records(dataset_name), cfg.DATALOADER.NUM_WORKERS
        # The loader draws a seed for its workers.
        batches: Any = build_detection_test_loader(records, mapper=mapped, num_workers=workers)
        if progress is not None and comm.is_main_process():
            batches = progress(batches)
        model.eval()
        with with_augmentation(cfg, model, test_aug) as detector:
            return inference_on_dataset(detector, batches, evaluator)
    finally:
        for module, training in modes.items():
            module.training = training
        restore_random_states(states)


class CocoScoreEvaluator(DatasetEvaluator):
    """Scores a model's outputs with :mod:`scratch_vs_pretrain.evaluation.scores`.

    In contrast to Detectron2's COCOEvaluator it changes none of the model's outputs, gives every
    number COCO defines, 0 where nothing was detected, and writes no file. `images`, how many were
    processed, and `results` are those of all processes after :meth:`evaluate`.
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
        results = [one for _, part in gathered for one in part]
        categories = loading.load_ground_truth(self._dataset_name)["categories"]
        # Of the model's classes, which Detectron2 numbers by ascending id.
        ids = dict(enumerate(sorted(category["id"] for category in categories)))
        try:
            self.results = [{**one, "category_id": ids[one["category_id"]]} for one in results]
        except KeyError as error:
            raise UserError(
                f"{self._dataset_name}: the model predicts class {error} but the data set has "
                f"{len(ids)}; set NUM_CLASSES of its heads to {len(ids)}"
            ) from None
        entries: dict[str, Any] = {}
        for task in self._tasks:
            ground_truth = loading.load_ground_truth(self._dataset_name, task)
            entries[task] = score(ground_truth, self.results, task, self._keypoint_sigmas)
            summary = {name: entries[task][name] for name in NUMBERS[task]}
            logger.info("%s of %s: %s", task, self._dataset_name, summary)
            if task == "bbox":
                entries[task]["errors"] = error_costs(ground_truth, self.results)
        return entries


@contextlib.contextmanager
def with_augmentation(cfg: Any, model: nn.Module, on: bool = True) -> Iterator[nn.Module]:
    """Yields a detector that merges its detections as ``TEST.AUG`` says, or `model` itself, a
    GeneralizedRCNN; `on=False` turns it off whatever the config says."""
    if not on or not cfg.TEST.AUG.ENABLED:
        yield model
        return
    if problems := augmentation_problems(cfg):
        raise UserError("; ".join(problems))
    heads: Any = model.roi_heads
    # Detectron2 turns them off for the boxes, and leaves them so after an error.
    names = [name for name in ("mask_on", "keypoint_on") if hasattr(heads, name)]
    switches = {name: getattr(heads, name) for name in names}
    augmented = KeypointRCNNWithTTA if cfg.MODEL.KEYPOINT_ON else GeneralizedRCNNWithTTA
    try:
        yield augmented(cfg, model)
    finally:
        for name, before in switches.items():
            setattr(heads, name, before)


class KeypointRCNNWithTTA(GeneralizedRCNNWithTTA):
    """Test augmentation of a keypoint detector, which Detectron2's own refuses.

    Boxes and masks are merged by Detectron2. For the merged boxes the heat maps of all scales and
    mirror images are averaged, as Detectron does (core/test.py, TEST.KPS_AUG with HM_AVG).
    """

    def __init__(self, cfg: Any, model: nn.Module) -> None:
        without = cfg.clone()
        without.defrost()
        without.MODEL.KEYPOINT_ON = False  # which Detectron2 asserts
        super().__init__(without, model)
        self._mirrored = list(create_keypoint_hflip_indices(cfg.DATASETS.TRAIN))

    def _inference_one_image(self, input: dict[str, Any]) -> dict[str, Any]:
        found = super()._inference_one_image(input)["instances"]
        inputs, transforms = self._get_augmented_inputs(input)
        boxes = self._rescale_detected_boxes(inputs, found, transforms)
        outputs = self._batch_inference(inputs, boxes)
        maps = [
            mirror_back(output.pred_keypoint_heatmaps, self._mirrored)
            if any(isinstance(one, HFlipTransform) for one in transform.transforms)
            else output.pred_keypoint_heatmaps
            for output, transform in zip(outputs, transforms, strict=True)
        ]
        keypoint_rcnn_inference(torch.stack(maps).mean(0), [found])
        return {"instances": found}


def mirror_back(maps: Tensor, mirrored: list[int]) -> Tensor:
    """Returns heat maps, (objects, keypoints, height, width), of a mirror image as those of the
    image; `mirrored` has for each keypoint the index of the one that it is in the mirror."""
    return maps.flip(3)[:, mirrored]
