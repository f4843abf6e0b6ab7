"""Every run of a study with its iterations, rate drops, images and epochs; nothing is trained.

And its budget: what each arm will see, from configs and annotation files alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from fvcore.common.config import CfgNode
from tabulate import tabulate  # type: ignore[import-untyped]

from scratch_vs_pretrain.analysis.stats import cost
from scratch_vs_pretrain.config import merge_overrides
from scratch_vs_pretrain.data.coco import read_annotations
from scratch_vs_pretrain.data.datasets import location, register
from scratch_vs_pretrain.data.loading import load_training_records
from scratch_vs_pretrain.data.voc import voc_images
from scratch_vs_pretrain.errors import UserError, located
from scratch_vs_pretrain.run_info import Init
from scratch_vs_pretrain.study import resolve
from scratch_vs_pretrain.study.audit import Audit, audit, joined
from scratch_vs_pretrain.study.data_sets import origin
from scratch_vs_pretrain.study.spec import Arm, Study

# Images that official annotation files list, so that a plan needs neither the files nor the time
# to read them.
OFFICIAL_IMAGES = {
    "coco_2017_train": 118_287,
    "coco_2014_train": 82_783,
    "coco_2014_valminusminival": 35_504,
    "voc_2007_trainval": 5_011,
    "voc_2012_train": 5_717,
    "voc_2012_trainval": 11_540,
}
# COCO without its files. Instances: train2017 has 849,949 that are no crowds, in 117,266 images,
# as Detectron2 logs it (facebookresearch/detectron2, issue 1134); train2014 and valminusminival
# together are train2017. Pixels: as of COCO's usual picture.
COCO_TRAIN = ("coco_2017_train", "coco_2014_train", "coco_2014_valminusminival")
COCO_INSTANCES_PER_IMAGE = 849_949 / 117_266
COCO_HEIGHT, COCO_WIDTH = 480, 640


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan."""

    arm: str
    schedule: str
    seed: int
    iterations: int
    base_rate: float  # SOLVER.BASE_LR
    drops: tuple[int, ...]  # iterations at which the rate drops
    images: int  # seen over all of training
    # Passes over the images that the training annotations list, None if unknown.
    epochs: float | None
    # The schedule from whose run it branches off, None if it begins by itself.
    trunk: str | None = None
    shared: int = 0  # iterations that are the trunk's
    switch: int | None = None  # the iteration at which another config takes over, None if none does
    size: str | None = None  # of the training data, None where the study does not vary it


@dataclass(frozen=True)
class Plan:
    """The runs of a study, by arm, schedule and seed, and what its arms differ in."""

    study: str
    rows: tuple[PlannedRun, ...]
    audit: Audit
    search: Plan | None = None  # of the search for the recipe, which comes first

    @property
    def iterations(self) -> int:
        """Of all runs, what they share counted once."""
        return sum(row.iterations - row.shared for row in self.rows)

    def text(self) -> str:
        """Returns the plan as `svp plan` prints it."""
        seeds: dict[PlannedRun, list[str]] = {}
        for row in self.rows:
            seeds.setdefault(replace(row, seed=0), []).append(str(row.seed))
        columns = {
            "size": [row.size or "-" for row in seeds],
            "arm": [row.arm for row in seeds],
            "schedule": [row.schedule for row in seeds],
            "seeds": [" ".join(of_row) for of_row in seeds.values()],
            "iterations": [f"{row.iterations:,}" for row in seeds],
            "rate drops at": [" ".join(f"{drop:,}" for drop in row.drops) for row in seeds],
            "switches at": ["-" if row.switch is None else f"{row.switch:,}" for row in seeds],
            "shares trunk to": [f"{row.shared:,}" if row.trunk else "-" for row in seeds],
            "images": [f"{row.images:,}" for row in seeds],
            "epochs": ["-" if row.epochs is None else f"{row.epochs:,.1f}" for row in seeds],
        }
        if len({row.seed for row in self.rows}) == 1:
            del columns["seeds"]
        for name in ("size", "switches at", "shares trunk to"):
            if set(columns[name]) == {"-"}:
                del columns[name]
        texts = ("arm", "schedule", "seeds", "rate drops at")
        table = tabulate(
            columns,
            headers="keys",
            tablefmt="plain",
            disable_numparse=True,
            colalign=["left" if name in texts else "right" for name in columns],
        )
        total = f"{len(self.rows)} run{'s' * (len(self.rows) != 1)}, {self.iterations:,} iterations"
        text = "\n".join([table, *self._sharing(), total, self.audit.text()])
        if self.search is None:
            return text
        return (
            f"first, the search for the recipe:\n{self.search.text()}\n"
            f"then, with the winner of the search:\n{text}"
        )

    def _sharing(self) -> Iterator[str]:
        """Yields what sharing saves in each arm, over all its seeds."""
        for arm in dict.fromkeys(row.arm for row in self.rows):
            rows = [row for row in self.rows if row.arm == arm]
            alone = sum(row.iterations for row in rows)
            shared = sum(row.shared for row in rows)
            if shared:
                yield (
                    f"{arm}: {alone - shared:,} iterations instead of {alone:,} "
                    f"({1 - shared / alone:.3f}x)"
                )


def plan(study: Study) -> Plan:
    """Plans a study."""
    check_parts(study)
    search = plan(resolve.search_study(study)) if study.tune else None
    audits, rows = [], []
    for part in study.by_size():
        audits.append(audit(part))
        branches = {arm.name: resolve.arm_branches(part, arm) for arm in part.arms}
        for run in part.runs():
            cfg = resolve.arm_config(part, run.arm, run.schedule)
            branch = branches[run.arm.name].get(run.schedule.name)
            schedule = resolve.resolved_schedule(part, run.arm, run.schedule)
            images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
            per_epoch = training_images(cfg)
            rows.append(
                PlannedRun(
                    arm=run.arm.name,
                    schedule=run.schedule.name,
                    seed=run.seed,
                    iterations=cfg.SOLVER.MAX_ITER,
                    base_rate=cfg.SOLVER.BASE_LR,
                    drops=tuple(cfg.SOLVER.STEPS),
                    images=images,
                    epochs=images / per_epoch if per_epoch else None,
                    trunk=branch.of if branch else None,
                    shared=branch.at if branch else 0,
                    switch=part.switch.start(schedule) if part.switch else None,
                    size=part.size,
                )
            )
    return Plan(study.name, tuple(rows), joined(audits), search)


def check_parts(study: Study) -> None:
    """Refuses overrides of sizes or of a search that are none, and sizes of equally many images."""
    places = [(f"sizes.{n}.overrides", size.overrides) for n, size in enumerate(study.sizes)]
    if study.tune:
        grid = study.tune.grid
        places += [("tune.grid", {key: value}) for key in grid for value in grid[key]]
    if places:
        cfg = resolve.base_config(study)  # in a run's, what is wrong would be another place's
        for place, overrides in places:
            merge_overrides(cfg, overrides, f"{study.file}: {place}")
    seen: dict[int | None, str] = {None: ""}
    for number, one in enumerate(study.by_size() if study.sizes else ()):
        cfg = resolve.arm_config(one, one.arms[0], one.arms[0].schedules[-1])
        with located(f"{study.file}: sizes.{number}"):
            images = training_images(cfg)
        if other := seen.get(images):
            raise UserError(
                f"{study.file}: sizes: {other} and {one.size} are both {images:,} images; remove "
                "one of them"
            )
        seen[images] = one.size if images is not None and one.size else ""


def check_evaluations(study: Study) -> None:
    """Refuses iterations to evaluate after that no run of a whole study reaches."""
    check_parts(study)
    lengths: list[int] = []
    asked: set[int] = set()
    for part in study.by_size():
        configs = [resolve.arm_config(part, arm, one) for arm in part.arms for one in arm.schedules]
        lengths += [cfg.SOLVER.MAX_ITER for cfg in configs]
        asked.update(*(cfg.SVP.EVAL_ITERATIONS for cfg in configs))
    if late := sorted(at for at in asked if at > max(lengths)):
        raise UserError(
            f"{study.file}: evaluation.at: no run has {late[0]:,} iterations, the longest "
            f"{max(lengths):,}; choose fewer, or remove it"
        )


def training_images(cfg: CfgNode) -> int | None:
    """Returns how many images the config's training annotations list, None if that is unknown."""
    counts = [_images(cfg, name) for name in cfg.DATASETS.TRAIN]
    return None if None in counts else sum(count for count in counts if count)


def _images(cfg: CfgNode, name: str) -> int | None:
    found = origin(cfg, name)
    file = found.readable if found.base in OFFICIAL_IMAGES else found.file
    if found.own and found.tree:
        count: int | None = len(voc_images(*found.tree))
    elif file and file.is_file():
        count = len(read_annotations(file).file_names)
    else:
        count = OFFICIAL_IMAGES.get(found.base)
    if found.subset is None:
        return count
    if count is None:
        return None if found.subset.relative else int(found.subset.size)
    return found.subset.count(count)


class _PerImage(NamedTuple):
    """What is expected of one image of a training set, None where unknown; and what was assumed."""

    instances: float | None
    pixels: float | None
    note: str = ""

    def times(self, images: int) -> cost.Counts:
        """Returns what is expected of so many images."""
        instances, pixels = (None if mean is None else round(mean * images) for mean in self[:2])
        return cost.Counts(images, instances, pixels)


def study_budgets(study: Study) -> cost.Budgets:
    """Returns what to expect of every arm and schedule of a study; opens images for their headers.

    Raises:
        UserError: a config cannot be made, or a training set cannot be used. Missing files of
            Detectron2's built-in data sets are no error: what is assumed instead is noted.
    """
    check_parts(study)
    rows: list[cost.Budget] = []
    known: dict[str, _PerImage] = {}
    for part in study.by_size():
        for arm, schedule in [(one, of_it) for one in part.arms for of_it in one.schedules]:
            cfg = resolve.arm_config(part, arm, schedule)
            model = cfg.MODEL
            heads = model.MASK_ON, model.KEYPOINT_ON, model.ROI_KEYPOINT_HEAD
            # All of a config on which the expectation depends.
            key = str((cfg.DATASETS.TRAIN, *heads, cfg.DATALOADER, cfg.INPUT))
            if key not in known:
                known[key] = _per_image(cfg)
            images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
            training = known[key].times(images)
            before = _pretraining(arm)
            rows.append(cost.Budget(arm.name, schedule.name, before, training, part.size))
    notes = [one.note for one in known.values() if one.note]
    if study.tune:
        notes.append(
            f"The search for the recipe on arm {study.tune.on}, which the recipe favours, is not "
            "counted."
        )
    notes = [*cost.assumptions(rows), *dict.fromkeys(notes)]
    return cost.Budgets(study.name, tuple(rows), False, tuple(notes))


def annotated(records: list[dict[str, Any]]) -> cost.Annotated:
    """Returns the sizes and instances of Detectron2's training records."""
    from detectron2.structures import BoxMode

    instances = [
        (number, BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS))
        for number, record in enumerate(records)
        for entry in record.get("annotations", ())
        if not entry.get("iscrowd", 0)
    ]
    return cost.Annotated(
        heights=np.array([record["height"] for record in records]),
        widths=np.array([record["width"] for record in records]),
        owners=np.array([owner for owner, _ in instances], dtype=int),
        boxes=np.array([box for _, box in instances], dtype=float).reshape(-1, 4),
    )


def _per_image(cfg: CfgNode) -> _PerImage:
    rule, missing = cfg.INPUT, []  # built-in sets whose files are not there, and why they are not
    for name in cfg.DATASETS.TRAIN:
        full = origin(cfg, name).base
        if full in OFFICIAL_IMAGES or full.startswith("keypoints_coco_"):
            try:
                location(full)
            except UserError as error:
                missing.append((full, str(error)))
    if not missing:
        register(cfg)
        data = annotated(load_training_records(cfg).records)
        return _PerImage(cost.expected_instances(data, rule), cost.expected_pixels(data, rule))
    names, reasons = zip(*missing, strict=True)
    if len(names) < len(cfg.DATASETS.TRAIN) or not set(names) <= set(COCO_TRAIN):
        return _PerImage(None, None, f"Unknown without its annotations: {'; '.join(reasons)}.")
    shape = cost.Annotated(
        np.array([COCO_HEIGHT]), np.array([COCO_WIDTH]), np.empty(0, int), np.empty((0, 4))
    )
    note = (
        f"Assumed without the annotations ({'; '.join(reasons)}): "
        f"{COCO_INSTANCES_PER_IMAGE:.2f} instances an image as in train2017, and images of "
        f"{COCO_WIDTH} x {COCO_HEIGHT} pixels before they are resized."
    )
    return _PerImage(COCO_INSTANCES_PER_IMAGE, cost.expected_pixels(shape, rule), note)


def _pretraining(arm: Arm) -> cost.Counts:
    """Returns what an arm's weights have seen; only a file that is here is asked."""
    noted = None
    if arm.weights and os.path.isfile(os.path.expanduser(arm.weights)):
        from scratch_vs_pretrain.modeling.checkpoint_file import read_metadata

        noted = read_metadata(arm.weights)
    return cost.pretraining(Init(weights=arm.weights, pretraining=noted))
