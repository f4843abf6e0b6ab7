"""Run folders to records and to one tidy frame; pandas is imported only where a frame is made."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain.analysis.runs.fields import field
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import STATES, RunFolder, find_run_folders

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunRecord:
    """One run, as its ``run.json`` tells it.

    Attributes:
        folder: the run folder.
        study: the study's name.
        arm: "scratch", "pretrained", or another arm's name.
        schedule: "2x", "600it".
        seed: None for a plain Detectron2 folder.
        state: one of ``run_folder.STATES``, "unknown" for a plain Detectron2 folder.
        reason: why it diverged or failed.
        iterations: planned iterations, 0 where unknown.
        iteration: completed iterations.
        steps: completed iterations at which the learning rate drops.
        images_per_batch: None where unknown.
        from_scratch: the arm starts from random weights.
        init: the initial weights: "name", "weights", "sha256", "pretraining".
        branch_of: the schedule of the run that it branches off from; None for one that begins by
            itself.
        branch_at: completed iterations at which it branches off from a run of a longer schedule;
            0 for a run that begins by itself.
        arm_order: the study's arms in its own order.
        allowed_differences: config keys the study lets its arms differ in; value per arm.
        tuned_on: the arm on which the recipe was searched, None if it was not.
        train_set: what it learns from: "names", "images", "annotations", "sha256"; empty where
            unknown.
        test_set: what it is evaluated on, likewise.
        thresholds: of the study's conclusions, where it sets its own.
        samples: "images", "instances" and "pixels" trained on.
        seconds: of training and evaluation; a branch's include its trunk's.
        trunk_seconds: the part of them that a branch has from its trunk.
        devices: that trained it together.
        inexact: why a resume of it was not exact, each reason once.
        provenance: "host", "device", "git_commit", "versions" and so on.
        own: this package wrote the folder.
    """

    folder: Path
    study: str
    arm: str = UNKNOWN
    schedule: str = UNKNOWN
    seed: int | None = None
    state: str = UNKNOWN
    reason: str | None = None
    iterations: int = 0
    iteration: int = 0
    steps: tuple[int, ...] = ()
    images_per_batch: int | None = None
    from_scratch: bool = False
    init: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    branch_of: str | None = None
    branch_at: int = 0
    arm_order: tuple[str, ...] = ()
    allowed_differences: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    tuned_on: str | None = None
    train_set: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    test_set: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    thresholds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    samples: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    trunk_seconds: float = 0.0
    devices: int = 1
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inexact: tuple[str, ...] = ()
    own: bool = True

    @property
    def name(self) -> str:
        """Names the run in messages: "scratch 600it seed 0"."""
        return f"{self.arm} {self.schedule} seed {self.seed}"

    @property
    def train_images(self) -> int | None:
        """Images of the training set."""
        return self.train_set.get("images")

    @property
    def images(self) -> int | None:
        """Images of the planned training."""
        return None if self.images_per_batch is None else self.iterations * self.images_per_batch

    @property
    def epochs(self) -> float | None:
        """Passes over the training set of the planned training."""
        return self.images / self.train_images if self.images and self.train_images else None


def load_runs(roots: Path | Iterable[Path]) -> tuple[RunRecord, ...]:
    """Reads every ``run.json`` at or below `roots`, sorted by study, arm, schedule and seed.

    Raises:
        UserError: no run there, an unreadable ``run.json``, one run found twice, or two studies of
            one name.
    """
    roots = _roots(roots)
    runs = [_record(RunFolder(path)) for path in _own_folders(roots)]
    if not runs:
        raise UserError(f"{_names(roots)}: no run.json at or below it; is it a study's output?")
    return _ordered(runs)


def find_runs(roots: Path | Iterable[Path]) -> tuple[RunRecord, ...]:
    """Reads what runs there are, plain Detectron2 folders too, in the order of `load_runs`.

    Of a plain Detectron2 folder (a ``metrics.json`` without ``run.json``) the study is the
    folder's name; arm, schedule and state are "unknown".

    Raises:
        UserError: no run there, one run found twice, or two studies of one name.
    """
    roots = _roots(roots)
    runs = [_record(RunFolder(path)) for path in _own_folders(roots)]
    runs += [_plain_record(path, study) for path, study in _plain_folders(roots).items()]
    if not runs:
        raise UserError(
            f"{_names(roots)}: no run.json and no metrics.json at or below it; "
            "is it an output folder of training?"
        )
    return _ordered(runs)


def collect(roots: Path | Iterable[Path]) -> pd.DataFrame:
    """Reads run folders, half-finished and plain Detectron2 ones too, into one tidy frame.

    Returns:
        the frame that :func:`scratch_vs_pretrain.analysis.runs.frame.tidy` describes.

    Raises:
        UserError: as :func:`find_runs`; or a damaged file (names the line), or two runs in one
            folder.
    """
    from scratch_vs_pretrain.analysis.runs.frame import tidy

    return tidy(find_runs(roots))


def _roots(roots: Path | Iterable[Path]) -> tuple[Path, ...]:
    paths = (roots,) if isinstance(roots, (str, Path)) else tuple(roots)
    for path in paths:
        if not Path(path).is_dir():
            raise UserError(f"{path}: no such folder")
    return tuple(Path(path) for path in paths)


def _names(roots: Sequence[Path]) -> str:
    return ", ".join(str(root) for root in roots) or "no folder given"


def _own_folders(roots: Sequence[Path]) -> list[Path]:
    found = {run.path.resolve(): run.path for root in roots for run in find_run_folders(root)}
    return list(found.values())


def _plain_folders(roots: Sequence[Path]) -> dict[Path, str]:
    """Returns other people's output folders with the name each is known by."""
    found: dict[Path, tuple[Path, str]] = {}
    for root in roots:
        for file in sorted(root.rglob("metrics.json")):
            path = file.parent
            if not (path / "run.json").exists():
                name = root.resolve().name if path == root else path.relative_to(root).as_posix()
                found.setdefault(path.resolve(), (path, name))
    return dict(found.values())


def _record(folder: RunFolder) -> RunRecord:
    content, file = folder.read(), folder.run_file
    get = functools.partial(field, content, file=file)
    data = get("data", kind=dict, default={})
    init = get("init", kind=dict, default={})
    branch = get("branch", kind=dict, default={})
    taken = field(branch, "taken", dict, file, {})
    origin = get("provenance", kind=dict, default={})
    state = folder.state()
    if state not in STATES:
        raise UserError(f"{file}: 'state' is {state!r}, not one of {', '.join(STATES)}")
    return RunRecord(
        folder=folder.path,
        study=get("study", kind=str),
        arm=get("arm", kind=str),
        schedule=get("schedule", kind=str),
        seed=get("seed", kind=int),
        state=state,
        reason=get("reason", kind=str, default=None),
        iterations=get("iterations", kind=int),
        iteration=get("iteration", kind=int, default=0),
        steps=_steps(get("steps", kind=list, default=[])),
        images_per_batch=get("images_per_batch", kind=int, default=None),
        from_scratch=init.get("name", get("arm", kind=str)) == "scratch",
        init=init,
        branch_of=field(branch, "of", str, file, None),
        branch_at=field(taken or branch, "iteration" if taken else "at", int, file, 0),
        arm_order=tuple(map(str, get("arm_order", kind=list, default=[]))),
        allowed_differences=get("allowed_differences", kind=dict, default={}),
        tuned_on=get("tuned_on", kind=str, default=None),
        train_set=_data_set(data, "train", file),
        test_set=_data_set(data, "test", file),
        thresholds=get("thresholds", kind=dict, default={}),
        samples=get("samples", kind=dict, default={}),
        seconds=get("seconds", kind=float, default=None),
        trunk_seconds=field(taken, "seconds", float, file, 0.0),
        devices=field(origin, "processes", int, file, 1),
        inexact=_inexact(get("resumes", kind=list, default=[])),
        provenance=origin,
    )


def _steps(listed: Sequence[Any]) -> tuple[int, ...]:
    return tuple(step for step in listed if type(step) is int)


def _inexact(resumes: Sequence[Any]) -> tuple[str, ...]:
    reasons = (resume.get("inexact_because", []) for resume in resumes if isinstance(resume, dict))
    return tuple(dict.fromkeys(str(reason) for some in reasons for reason in some))


def _data_set(data: Mapping[str, Any], part: str, file: Path) -> dict[str, Any]:
    content = field(data, part, dict, file, {})
    return {
        "names": tuple(map(str, field(content, "names", list, file, []))),
        "images": field(content, "images", int, file, None),
        "annotations": field(content, "annotations", int, file, None),
        "sha256": field(content, "sha256", str, file, None),
    }


def _plain_record(folder: Path, study: str) -> RunRecord:
    import yaml

    solver: Any = {}
    # Without it the images seen and the rate's drops stay unknown.
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        solver = yaml.safe_load((folder / "config.yaml").read_text())["SOLVER"]
    solver = solver if isinstance(solver, dict) else {}
    batch, steps = solver.get("IMS_PER_BATCH"), solver.get("STEPS")
    return RunRecord(
        folder=folder,
        study=study,
        images_per_batch=batch if type(batch) is int else None,
        steps=_steps(steps if isinstance(steps, (list, tuple)) else ()),
        own=False,
    )


def _ordered(runs: Sequence[RunRecord]) -> tuple[RunRecord, ...]:
    _refuse_twins(runs)
    _refuse_namesakes(runs)
    return tuple(sorted(runs, key=_sort_key))


def _sort_key(run: RunRecord) -> tuple[Any, ...]:
    place = run.arm_order.index(run.arm) if run.arm in run.arm_order else len(run.arm_order)
    return (natural(run.study), place, run.arm, run.iterations, run.schedule, run.seed or 0)


def natural(name: str) -> tuple[list[tuple[str, int]], str]:
    """Returns a sort key by which "less-300" comes before "less-1000"."""
    parts = re.findall(r"([^0-9]*)([0-9]{0,18})", name)
    return [(text, int(number or -1)) for text, number in parts], name


def _refuse_twins(runs: Sequence[RunRecord]) -> None:
    seen: dict[tuple[Any, ...], RunRecord] = {}
    for run in runs:
        twin = seen.setdefault((run.study, run.arm, run.schedule, run.seed), run)
        if twin is not run:
            raise UserError(
                f"{twin.folder} and {run.folder} hold the same run ({run.name} of study "
                f"{run.study}); give only one of them, or rename one study"
            )


def _refuse_namesakes(runs: Sequence[RunRecord]) -> None:
    """Two studies of one name: their schedules or, in folders apart, their arms differ."""
    schedules: dict[tuple[str, str, str], RunRecord] = {}
    studies: dict[str, RunRecord] = {}
    for run in runs:
        first = schedules.setdefault((run.study, run.arm, run.schedule), run)
        if first.iterations != run.iterations:
            what = f"{run.schedule} is {first.iterations} and {run.iterations} iterations"
            raise _namesakes(first, run, what)
        first = studies.setdefault(run.study, run)
        apart = first.folder.parents[2:3] != run.folder.parents[2:3]
        if apart and first.arm_order != run.arm_order:
            what = f"arms {', '.join(first.arm_order)} and {', '.join(run.arm_order)}"
            raise _namesakes(first, run, what)


def _namesakes(first: RunRecord, second: RunRecord, what: str) -> UserError:
    return UserError(
        f"{first.folder} and {second.folder} belong to two studies named {first.study} ({what}); "
        "read them apart, or rename one"
    )
