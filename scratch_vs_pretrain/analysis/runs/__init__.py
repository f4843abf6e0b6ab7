"""Run folders, read: to records here, to numbers beside it."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from scratch_vs_pretrain.errors import UserError, skip
from scratch_vs_pretrain.run_folder import find_files, find_run_folders, read_section
from scratch_vs_pretrain.run_info import LARGEST, MOST_PER_BATCH, RunInfo

UNKNOWN = "unknown"
# What to make of a log in which training begins again; see frame.py.
RESTARTS = ("last", "split", "refuse")


class RunRecord(RunInfo):
    """One run, as its ``run.json`` tells it, with the folder that it was read from."""

    folder: Path
    arm: str = UNKNOWN
    schedule: str = UNKNOWN
    seed: int | None = None  # type: ignore[assignment]  # None for a plain Detectron2 folder
    # Of the files together, see :meth:`.RunFolder.state`; "unknown" for a plain Detectron2 folder.
    state: str = UNKNOWN  # type: ignore[assignment]
    iterations: int = 0  # planned, 0 where unknown
    own: bool = False  # this package wrote the folder


Records = Sequence[RunRecord]
K = TypeVar("K")


def load_runs(
    roots: Path | Iterable[Path], skipped: list[str] | None = None, *, plain: bool = False
) -> tuple[RunRecord, ...]:
    """Reads every ``run.json`` at or below `roots`, sorted by study, arm, schedule and seed.

    Args:
        roots: folders.
        skipped: takes the messages about what cannot be read, which is then left out.
        plain: read plain Detectron2 folders too (a ``metrics.json`` without ``run.json``). Their
            study is the folder's name; arm, schedule and state are "unknown".

    Raises:
        UserError: no run there; and unless `skipped` takes it, an unreadable ``run.json`` or
            folder, one run found twice, or two studies of one name.
    """
    paths = (roots,) if isinstance(roots, (str, Path)) else tuple(roots)
    for path in paths:
        if not Path(path).is_dir():
            raise UserError(f"{path}: no such folder")
    tops = [Path(path) for path in paths]
    folders = {run.path.resolve(): run for top in tops for run in find_run_folders(top, skipped)}
    runs = []
    for folder in folders.values():
        try:
            info = folder.read()
        except UserError as error:
            skip(error, skipped)
            continue
        known = dict(info) | {"state": folder.state_of(info), "folder": folder.path, "own": True}
        runs.append(RunRecord.model_construct(**known))
    if plain:
        others = _plain_folders(tops, folders)
        runs += [_plain_record(path, study) for path, study in others.items()]
    if not runs and not folders:
        names = ", ".join(map(str, tops)) or "no folder given"
        what = "no run.json at or below it; is it a study's output?"
        if plain:
            what = "no run.json and no metrics.json at or below it; is it training's output?"
        raise UserError(skipped[0] if skipped else f"{names}: {what}")
    return tuple(sorted(_distinct(runs, skipped), key=_sort_key))


def grouped(
    runs: Iterable[RunRecord], key: Callable[[RunRecord], K]
) -> dict[K, tuple[RunRecord, ...]]:
    """Groups runs by a key, in order of appearance."""
    groups: dict[K, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return {name: tuple(members) for name, members in groups.items()}


def _plain_folders(roots: Sequence[Path], own: Collection[Path]) -> dict[Path, str]:
    """Returns other people's output folders, not our `own`, with the name each is known by."""
    found: dict[Path, tuple[Path, str]] = {}
    for root in roots:
        for file in find_files(root, "metrics.json", []):  # the first walk told what is unreadable
            path = file.parent
            if (real := path.resolve()) not in own:
                name = root.resolve().name if path == root else path.relative_to(root).as_posix()
                found.setdefault(real, (path, name))
    return dict(found.values())


def _plain_record(folder: Path, study: str) -> RunRecord:
    # Without it the images seen and the rate's drops stay unknown.
    solver = read_section(folder / "config.yaml", "SOLVER")
    batch, steps = solver.get("IMS_PER_BATCH"), solver.get("STEPS")
    return RunRecord.model_construct(
        folder=folder,
        study=study,
        images_per_batch=batch if _is_count(batch, MOST_PER_BATCH) else None,
        steps=tuple(filter(_is_count, steps if isinstance(steps, (list, tuple)) else ())),
    )


def _is_count(value: Any, most: int = LARGEST) -> bool:
    return type(value) is int and 0 <= value <= most


def _sort_key(run: RunRecord) -> tuple[Any, ...]:
    place = run.arm_order.index(run.arm) if run.arm in run.arm_order else len(run.arm_order)
    setting = (natural(run.study), run.size or 0)
    return (*setting, place, run.arm, run.iterations, run.schedule, run.seed or 0)


def natural(name: str) -> tuple[list[tuple[str, int]], str]:
    """Returns a sort key by which "less-300" comes before "less-1000"."""
    parts = re.findall(r"([^0-9]*)([0-9]{0,18})", name)
    return [(text, int(number or -1)) for text, number in parts], name


def _distinct(runs: Records, skipped: list[str] | None) -> Iterator[RunRecord]:
    """Yields runs without twins and namesakes.

    Two studies have one name if their schedules or, in folders apart, their arms differ.
    """
    twins: dict[tuple[Any, ...], RunRecord] = {}
    schedules: dict[tuple[Any, ...], RunRecord] = {}
    studies: dict[str, RunRecord] = {}
    for run in runs:
        key = (run.study, run.size, run.arm, run.schedule)
        twin = twins.setdefault((*key, run.seed), run)
        other, what = schedules.setdefault(key, run), ""
        if other.iterations != run.iterations:
            what = f"{run.schedule} is {other.iterations} and {run.iterations} iterations"
        else:
            other = studies.setdefault(run.study, run)
            apart = other.folder.parents[2:3] != run.folder.parents[2:3]
            if apart and other.arm_order != run.arm_order:
                what = f"arms {' and '.join(', '.join(o.arm_order) for o in (other, run))}"
        if twin is not run:
            problem = (
                f"{twin.folder} and {run.folder} hold the same run ({run.name} of study "
                f"{run.study}); give only one of them, or rename one study"
            )
        elif what:
            problem = (
                f"{other.folder} and {run.folder} belong to two studies named {run.study} ({what});"
                " read them apart, or rename one"
            )
        else:
            yield run
            continue
        skip(UserError(problem), skipped)
