"""A recipe searched on one arm, then used unchanged by all: the paper's protocol for small data.

The search is a study of its own, ``<study>-tune``, with an arm for each point of the grid. It is
run, resumed and read like any other.
"""

import itertools
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder, read_json, write_json
from scratch_vs_pretrain.study.sections import Tune
from scratch_vs_pretrain.study.spec import Arm, Study

TUNE_FILE = "tune.json"


def grid_points(tune: Tune) -> list[dict[str, Any]]:
    """Returns the overrides of every point, the last key varying fastest."""
    return [
        dict(zip(tune.grid, values, strict=True))
        for values in itertools.product(*tune.grid.values())
    ]


def search_study(study: Study) -> Study:
    """Returns the study that searches: the tuned arm's first schedule and the first seed.

    Its name and its arms' name the search's folders. A size that states its recipe is not in it.
    """
    tune = study.tune
    assert tune is not None
    origin = next(arm for arm in study.arms if arm.name == tune.on)
    points = grid_points(tune)
    arms = tuple(
        Arm(
            f"{tune.on}-{number:0{len(str(len(points)))}d}",
            origin.init,
            origin.schedules[:1],
            {**origin.overrides, **point},
        )
        for number, point in enumerate(points, 1)
    )
    return replace(
        study,
        name=f"{study.name}-tune",
        description=f"search for the recipe of {study.name} on {tune.on}",
        arms=arms,
        seeds=study.seeds[:1],
        sizes=tuple(
            replace(size, schedules=size.schedules[:1])
            for size in study.sizes
            if not tune.grid.keys() <= size.overrides.keys()
        ),
        allow_differences=tuple(dict.fromkeys((*study.allow_differences, *tune.grid))),
        tune=None,
    )


def with_recipe(study: Study, output: Path) -> Study:
    """Returns the study in which every arm trains with the best of its search, the first of equals.

    The runs of :func:`search_study` below `output` have ended. Writes the search of each size to a
    ``tune.json`` beside its run folders.
    """
    assert study.tune is not None
    winners = {one.size: _winner(study.tune, one, output) for one in search_study(study).by_size()}
    if not study.sizes:
        overrides = {**study.overrides, **winners[None]}
        return replace(study, overrides=overrides, tune=None, tuned_on=study.tune.on)
    sizes = (
        replace(size, overrides={**size.overrides, **winners[size.name]}, tuned_on=study.tune.on)
        if size.name in winners
        else size
        for size in study.sizes
    )
    return replace(study, sizes=tuple(sizes), tune=None)


def _winner(tune: Tune, search: Study, output: Path) -> dict[str, Any]:
    """Returns the overrides of the best run of a search."""
    folders = [run.folder(output) for run in search.runs()]
    root = folders[0].path.parents[2]
    trials: list[dict[str, Any]] = [
        {"arm": arm.name, "overrides": point, **_result(folder, tune.metric)}
        for folder, arm, point in zip(folders, search.arms, grid_points(tune), strict=True)
    ]
    scored = [trial for trial in trials if trial["score"] is not None]
    if not scored:
        raise UserError(
            f"{search.file}: tune: every one of the {len(trials)} runs below {root} diverged; "
            "choose another grid"
        )
    best = max(scored, key=itemgetter("score"))  # the first of equals
    write_json(
        root / TUNE_FILE,
        {
            "format": 1,
            "study": search.name.removesuffix("-tune"),
            "on": tune.on,
            "metric": tune.metric,
            "schedule": search.arms[0].schedules[0].name,
            "seed": search.seeds[0],
            "grid": {key: list(values) for key, values in tune.grid.items()},
            "trials": trials,
            "winner": {key: best[key] for key in ("arm", "overrides", "score")},
        },
    )
    winner: dict[str, Any] = best["overrides"]
    return winner


def _result(folder: RunFolder, metric: str) -> dict[str, Any]:
    """Returns how a point's run ended, and the metric after its last iteration if it finished."""
    run = folder.read()
    if run.state != "finished":
        return {"state": run.state, "score": None}
    file = folder.evaluation_file(run.iterations)
    task, number = metric.split("/")
    try:
        return {"state": run.state, "score": read_json(file)["tasks"][task][number]}
    except (KeyError, TypeError):
        raise UserError(
            f"{file}: has no {metric}, by which the study tunes; change tune.metric"
        ) from None
