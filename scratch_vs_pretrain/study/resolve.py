"""What a study's runs are made of: each one's final config, and the studies that a study becomes.

Those are the search for the recipe, ``<study>-tune`` with an arm for each point of the grid, which
is run, resumed and read like any other; the study with the recipe that was found, which all arms
train with unchanged (the paper's protocol for small data); and the study after a switch.
"""

import itertools
from collections.abc import Collection
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from scratch_vs_pretrain.config import merge_overrides, read_config
from scratch_vs_pretrain.data.datasets import refuse_subsets, subset_of
from scratch_vs_pretrain.errors import UserError, located
from scratch_vs_pretrain.run_folder import RunFolder, read_json, write_json
from scratch_vs_pretrain.run_info import Branch
from scratch_vs_pretrain.study.data_sets import merge_data
from scratch_vs_pretrain.study.sections import Schedule, Tune, branches_of
from scratch_vs_pretrain.study.spec import FULL, RUN_SCHEME, Arm, Run, Study
from scratch_vs_pretrain.study.values import value_problems

# What the pixels of a pre-trained backbone looked like, and where its stages halve the resolution.
# The three belong together, and to both arms. Sources: comments in Detectron2's
# checkpoint/catalog.py and config/defaults.py; torchvision's ImageNet normalization times 255.
_KEYS = ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1")
_VALUES = {
    # ImageNetPretrained/MSRA/*: Caffe models.
    "detectron2": ("BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0], True),
    # ImageNetPretrained/FAIR/*-GN: Caffe2 models.
    "detectron2-gn": ("BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0], False),
    # ImageNetPretrained/torchvision/* and most self-supervised ones.
    "torchvision": ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], False),
}
PRESETS = {name: dict(zip(_KEYS, values, strict=True)) for name, values in _VALUES.items()}
# Whose weights an address gives: what it begins with, and the preset that they need.
ORIGINS = {
    "detectron2://ImageNetPretrained/MSRA/": "detectron2",
    "catalog://ImageNetPretrained/MSRA/": "detectron2",
    "detectron2://ImageNetPretrained/FAIR/R-": "detectron2-gn",
    "catalog://ImageNetPretrained/FAIR/R-": "detectron2-gn",
    "detectron2://ImageNetPretrained/torchvision/": "torchvision",
    "https://download.pytorch.org/models/": "torchvision",
}


def run_config(study: Study, run: Run) -> CfgNode:
    """Returns the frozen config of one run, as its folder will hold it.

    Later ones win: Detectron2's default, the base file, the preset, the study's overrides,
    evaluation and data, the arm's overrides, the schedule, the initial weights and the seed.

    OUTPUT_DIR is empty in every run: the folder that holds the config *is* the output folder, so
    that a run whose folder was moved or copied to another machine resumes there, with a config
    that still equals the study's.
    """
    cfg = arm_config(study, run.arm, run.schedule).clone()
    cfg.defrost()
    cfg.SEED = run.seed
    cfg.freeze()
    return cfg


def arm_config(study: Study, arm: Arm, schedule: Schedule) -> CfgNode:
    """Returns the frozen config that an arm's runs share with this schedule; :func:`run_config`.

    It is merged once for each study.
    """
    made = vars(study).setdefault("_configs", {})  # no field: equal studies stay equal
    key = id(arm), id(schedule)
    if key not in made:
        made[key] = arm, schedule, _merged(study, arm, schedule)  # held, so that ids stay theirs
    return made[key][-1]


def base_config(study: Study) -> CfgNode:
    """Returns what all runs begin with: the default, with the keys of own modules, and the base."""
    return read_config(study.base, study.imports, f"{study.file}: imports")


def _merged(study: Study, arm: Arm, schedule: Schedule) -> CfgNode:
    cfg = base_config(study)
    if study.preset:
        merge_overrides(cfg, PRESETS[study.preset], f"preset {study.preset}")
    merge_overrides(cfg, study.overrides, f"{study.file}: overrides")
    if study.evaluation.period is not None:
        cfg.TEST.EVAL_PERIOD = study.evaluation.period
    if study.evaluation.at:
        cfg.SVP.EVAL_ITERATIONS = study.evaluation.at
    merge_data(cfg, study, arm)
    merge_overrides(cfg, arm.overrides, f"{study.file}: arms.{arm.name}.overrides")
    if cfg.MODEL.TIMM.NAME:
        from scratch_vs_pretrain.modeling.backbone import pixel_settings

        # The pixels that it was trained with, unless the study states others.
        stated = {**study.overrides, **arm.overrides}
        with located(f"{study.file}: arms.{arm.name}"):
            pixels = pixel_settings(cfg.MODEL.TIMM.NAME)
            unstated = {key: value for key, value in pixels.items() if key not in stated}
            merge_overrides(cfg, unstated, "MODEL.TIMM.NAME")
    if study.size and study.size != FULL:
        if len(cfg.DATASETS.TRAIN) != 1:
            raise UserError(
                f"{study.file}: sizes: are subsets of one training set, but DATASETS.TRAIN names "
                f"{len(cfg.DATASETS.TRAIN)}; join their files, or remove sizes"
            )
        cfg.DATASETS.TRAIN = (f"{cfg.DATASETS.TRAIN[0]}_{study.size}",)
    _check_data_names(cfg, study)
    if problems := value_problems(cfg):
        raise UserError(f"{study.file}: {'; '.join(problems)}")
    with located(study.file):
        schedule.resolve(cfg.SOLVER.IMS_PER_BATCH, cfg.SVP.REFERENCE_BATCH).apply(cfg)
    cfg.MODEL.WEIGHTS = arm.weights
    if arm.load == "detector" and not arm.weights:
        raise UserError(
            f"{study.file}: arms.{arm.name}.load: init is scratch, which is no detector; "
            "leave load out"
        )
    cfg.SVP.LOAD = arm.load or cfg.SVP.LOAD
    cfg.SVP.FREEZE = arm.freeze or cfg.SVP.FREEZE
    cfg.SVP.ADMIT = study.admit or cfg.SVP.ADMIT
    cfg.OUTPUT_DIR = ""
    cfg.freeze()
    return cfg


def resolved_schedule(study: Study, arm: Arm, schedule: Schedule) -> Schedule:
    """Returns an arm's schedule at its batch size."""
    cfg = arm_config(study, arm, schedule)
    return schedule.resolve(cfg.SOLVER.IMS_PER_BATCH, cfg.SVP.REFERENCE_BATCH)


def schedules_of(study: Study, arm: Arm) -> list[Schedule]:
    """Returns an arm's schedules, in the study's order."""
    return [resolved_schedule(study, arm, schedule) for schedule in arm.schedules]


def arm_branches(study: Study, arm: Arm, begun: Collection[str] = ()) -> dict[str, Branch]:
    """Returns where an arm's runs of one seed branch off, by schedule; see :func:`branches_of`."""
    return branches_of(schedules_of(study, arm), study.switch, begun) if study.sharing else {}


def _check_data_names(cfg: CfgNode, study: Study) -> None:
    for key in ("TRAIN", "TEST"):
        names = cfg.DATASETS[key]
        if not names or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"{study.file}: DATASETS.{key} names no data set, neither in {study.base} nor in "
                f"the overrides (it is {names!r}); for example [coco_2017_{key.lower()}]"
            )
    own = [name for name, *_ in (*cfg.SVP.DATASETS, *cfg.SVP.VOC_DATASETS)]
    with located(study.file):
        for name in cfg.DATASETS.TRAIN:
            subset_of(name, own)
        refuse_subsets(cfg.DATASETS.TEST, own)


def switched_study(study: Study) -> Study:
    """Returns the study whose runs are the ends of this study's: same arms, the switch's config."""
    assert study.switch is not None
    ends = replace(study, base=study.switch.config, switch=None)
    return vars(study).setdefault("_ends", ends)  # one, which keeps its merged configs


def origin_run(arm: Arm, seed: int, output: Path) -> RunFolder:
    """Returns the run that an arm of ``init: run://...`` starts from, which must have finished."""
    path = arm.init.removeprefix(RUN_SCHEME)
    folder = RunFolder(output / (path if path[-1].isdigit() else f"{path}{seed}"))
    state = folder.state() if folder.run_file.exists() else "not there"
    if state != "finished":
        raise UserError(f"the run in {folder.path} is {state}; train it to its end first")
    return folder


def with_origins(study: Study, seed: int, output: Path) -> Study:
    """Returns a study in which arms that start from another run have that run's checkpoint.

    Arms of ``init: run://STUDY/ARM/SCHEDULE/seed`` start from the run below `output` of the same
    `seed`, those of ``.../seed0`` from that one.
    """
    arms = []
    for arm in study.arms:
        if arm.init.startswith(RUN_SCHEME):
            from scratch_vs_pretrain.training.checkpoint import newest_first

            with located(f"{study.file}: arms.{arm.name}.init: {arm.init}"):
                folder = origin_run(arm, seed, output)
                files = newest_first(folder)
                if not files:
                    raise UserError(f"{folder.checkpoints} has no checkpoint left; train it again")
            arm = replace(arm, init=str(files[0].resolve()))
        arms.append(arm)
    return replace(study, arms=tuple(arms))


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
        replace(
            origin,
            name=f"{tune.on}-{number:0{len(str(len(points)))}d}",
            schedules=origin.schedules[:1],
            overrides={**origin.overrides, **point},
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
        root / "tune.json",
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
    return dict(best["overrides"])


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
