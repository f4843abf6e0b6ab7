"""Every run of a study with its iterations, rate drops, images and epochs; nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate  # type: ignore[import-untyped]

from scratch_vs_pretrain._detectron2 import registered
from scratch_vs_pretrain.data.coco import read_annotations
from scratch_vs_pretrain.data.subsets import ALIASES
from scratch_vs_pretrain.study.audit import Audit, audit, joined
from scratch_vs_pretrain.study.resolve import resolved_schedule, run_config, schedules_of
from scratch_vs_pretrain.study.schedule import branches_of
from scratch_vs_pretrain.study.spec import Study
from scratch_vs_pretrain.study.tune import search_study

if TYPE_CHECKING:
    from detectron2.config import CfgNode

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
# An annotation file of an official name but of less bytes is a part of it, and is counted.
OFFICIAL_BYTES = 50_000_000


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan.

    Attributes:
        base_rate: SOLVER.BASE_LR.
        drops: iterations at which the rate drops.
        images: seen over all of training.
        epochs: passes over the images that the training annotations list, None if unknown.
        trunk: the schedule from whose run it branches off, None if it begins by itself.
        shared: iterations that are the trunk's.
        switch: the iteration at which another config takes over, None if none does.
        size: of the training data, None where the study does not vary it.
    """

    arm: str
    schedule: str
    seed: int
    iterations: int
    base_rate: float
    drops: tuple[int, ...]
    images: int
    epochs: float | None
    trunk: str | None = None
    shared: int = 0
    switch: int | None = None
    size: str | None = None


@dataclass(frozen=True)
class Plan:
    """The runs of a study, by arm, schedule and seed, and what its arms differ in.

    Attributes:
        search: of the search for the recipe, which comes first.
    """

    study: str
    rows: tuple[PlannedRun, ...]
    audit: Audit
    search: Plan | None = None

    def text(self) -> str:
        """Returns the plan as `svp plan` prints it."""
        columns = {
            "size": [row.size or "-" for row in self.rows],
            "arm": [row.arm for row in self.rows],
            "schedule": [row.schedule for row in self.rows],
            "seed": [str(row.seed) for row in self.rows],
            "iterations": [f"{row.iterations:,}" for row in self.rows],
            "rate drops at": [" ".join(f"{drop:,}" for drop in row.drops) for row in self.rows],
            "switches at": ["-" if row.switch is None else f"{row.switch:,}" for row in self.rows],
            "shares trunk to": [f"{row.shared:,}" if row.trunk else "-" for row in self.rows],
            "images": [f"{row.images:,}" for row in self.rows],
            "epochs": ["-" if row.epochs is None else f"{row.epochs:,.1f}" for row in self.rows],
        }
        if len(set(columns["seed"])) == 1:
            del columns["seed"]
        for name in ("size", "switches at", "shares trunk to"):
            if set(columns[name]) == {"-"}:
                del columns[name]
        texts = ("arm", "schedule", "rate drops at")
        table = tabulate(
            columns,
            headers="keys",
            tablefmt="plain",
            disable_numparse=True,
            colalign=["left" if name in texts else "right" for name in columns],
        )
        text = "\n".join([table, *self._sharing(), self._total(), self.audit.text()])
        if self.search is None:
            return text
        return (
            f"first, the search for the recipe:\n{self.search.text()}\n"
            f"then, with the winner of the search:\n{text}"
        )

    def _total(self) -> str:
        total = sum(row.iterations - row.shared for row in self.rows)
        runs = f"{len(self.rows)} run{'s' if len(self.rows) != 1 else ''}"
        return f"{runs}, {total:,} iterations"

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


def plan(
    study: Study, dataset_images: Mapping[str, int] | None = None, sharing: bool = True
) -> Plan:
    """Plans a study.

    Args:
        study: what to plan.
        dataset_images: images of training sets by name, where the caller knows them better.
        sharing: schedules of one arm and seed share their trunk.

    Raises:
        UserError: the audit refuses the study, or a run's config cannot be made.
    """
    if study.sizes:
        parts = [plan(one, dataset_images, sharing) for one in study.by_size()]
        rows = tuple(row for part in parts for row in part.rows)
        return Plan(study.name, rows, joined([part.audit for part in parts]))
    audited = audit(study)
    branches = {
        arm.name: branches_of(schedules_of(study, arm), study.switch) if sharing else {}
        for arm in study.arms
    }
    planned = []
    for run in study.runs():
        cfg = run_config(study, run)
        branch = branches[run.arm.name].get(run.schedule.name)
        schedule = resolved_schedule(study, run.arm, run.schedule)
        images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
        per_epoch = training_images(cfg, dataset_images or {})
        planned.append(
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
                switch=study.switch.start(schedule) if study.switch else None,
                size=study.size,
            )
        )
    search = plan(search_study(study), dataset_images, sharing) if study.tune else None
    return Plan(study.name, tuple(planned), audited, search)


def training_images(cfg: CfgNode, known: Mapping[str, int]) -> int | None:
    """Returns how many images the config's training annotations list, None if that is unknown."""
    files = {name: Path(annotations) for name, annotations, _ in cfg.SVP.DATASETS}
    for name, root, split, *_ in cfg.SVP.VOC_DATASETS:
        from scratch_vs_pretrain.data.voc import voc_count

        known = {name: voc_count(Path(root), split), **known}
    counts = [_images(name, files, known) for name in cfg.DATASETS.TRAIN]
    return None if None in counts else sum(count for count in counts if count)


def _images(name: str, files: Mapping[str, Path], known: Mapping[str, int]) -> int | None:
    from scratch_vs_pretrain.data.datasets import find_subset

    full = ALIASES.get(name, name)
    subset = None if full in known else find_subset(full, files)
    if subset is None:
        return known.get(full) or _count(full, files.get(full) or _registered_file(full))
    base = _images(subset.base, files, known)
    if base is None:
        return None if subset.relative else int(subset.size)
    return subset.count(base)


def _count(name: str, file: Path | None) -> int | None:
    there = file is not None and file.is_file()
    if file and there and (name not in OFFICIAL_IMAGES or file.stat().st_size < OFFICIAL_BYTES):
        return len(read_annotations(file).file_names)
    return OFFICIAL_IMAGES.get(name)


def _registered_file(name: str) -> Path | None:
    """Returns the COCO annotation file of a data set that Detectron2 knows, None for others."""
    file = (registered(name) or {}).get("json_file")
    return Path(file) if file else None
