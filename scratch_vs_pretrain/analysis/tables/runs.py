"""Tables of the runs themselves: how far each is, where and with what it trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from scratch_vs_pretrain.analysis.runs.records import Records
from scratch_vs_pretrain.analysis.tables.table import Cell, Table
from scratch_vs_pretrain.config import differences
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.run_info import DataSet, Provenance


def differences_table(runs: Records) -> Table:
    """Compares the final configs of one run per arm, at its longest schedule."""
    configs: dict[str, Any] = {}
    for run in sorted(runs, key=lambda run: -run.iterations):
        file = RunFolder(run.folder).config_file
        if run.arm not in configs and file.exists():
            try:
                configs[run.arm] = dict(yaml.safe_load(file.read_text()))
            except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError):
                raise UserError(
                    f"{file}: not plain YAML of config keys; is it a run's final config?"
                ) from None
    found = differences(configs) if len(configs) > 1 else {}
    rows = [
        (key, *(json.dumps(values.get(arm)) for arm in configs))
        for key, values in found.items()
        if key != "OUTPUT_DIR"
    ]
    notes = () if len(configs) > 1 else ("Fewer than two arms have a config.yaml here.",)
    title = "Final configs at each arm's longest schedule, key by key"
    return Table(title, ("key", *configs), tuple(rows), notes)


def runs_table(runs: Records) -> Table:
    """Lists every run of a study, and those that only other arms have."""
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        hours = None if run.seconds is None else run.seconds / 3600
        far = (run.state, run.iteration, run.iterations, hours, run.reason)
        rows.append((run.arm, run.schedule, run.seed, *far))
    header = ("arm", "schedule", "seed", "state", "iteration", "of", "hours", "reason")
    title = "Every run; those that are not finished enter no mean"
    return Table(title, header, (*rows, *_absent(runs)))


def _absent(runs: Records) -> Iterator[tuple[Cell, ...]]:
    """Yields the runs without a folder whose schedule and seed other arms of the study have."""
    known = {(run.arm, run.schedule, run.seed) for run in runs}
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    arms = runs[0].arm_order or tuple(dict.fromkeys(run.arm for run in runs))
    for arm in arms:
        mine = list(dict.fromkeys(run.schedule for run in runs if run.arm == arm))
        for schedule in mine or dict.fromkeys(run.schedule for run in runs):
            for seed in seeds:
                if (arm, schedule, seed) not in known:
                    yield (arm, schedule, seed, "no folder", None, None, None, None)


def provenance_table(runs: Records) -> Table:
    """Lists every fact with its distinct values; more than one is worth a look."""
    facts: dict[str, dict[str, None]] = {}
    for run in runs:
        origin = run.provenance or Provenance()
        known = {
            "device": origin.device,
            "host": origin.host,
            "git commit": origin.git_commit,
            "training data": _data(run.data.train),
            "evaluation data": _data(run.data.test),
            **origin.versions,
        }
        for name, value in known.items():
            if value:
                facts.setdefault(name, {})[value] = None
    rows = tuple((name, "; ".join(values)) for name, values in facts.items())
    return Table("Where, with what and on what the runs trained", ("", "value"), rows)


def _data(data: DataSet) -> str | None:
    if not data.names:
        return None
    count = "" if data.images is None else f", {data.images:,} images"
    digest = f", sha256 {data.sha256[:12]}" if data.sha256 else ""
    return f"{', '.join(data.names)}{count}{digest}"
