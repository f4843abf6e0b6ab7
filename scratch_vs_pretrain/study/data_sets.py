"""The data sets that a study trains and evaluates on, to be checked."""

from __future__ import annotations

import contextlib
from pathlib import Path

from scratch_vs_pretrain.data.check import DataSet, registered_set
from scratch_vs_pretrain.data.datasets import register
from scratch_vs_pretrain.data.findings import MOST_DROPPED
from scratch_vs_pretrain.data.loading import heads_of
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.parse import load_study
from scratch_vs_pretrain.study.resolve import run_config
from scratch_vs_pretrain.study.spec import Data, DataFiles, Study


def study_sets(file: Path) -> list[DataSet]:
    """Returns every data set of a study file.

    Its own COCO files are taken as they are, so that what is wrong with them can be listed.

    Raises:
        UserError: the study file is wrong, or a data set is not there.
    """
    study = load_study(file, need_weights=False)
    if study.data and isinstance(study.data.test, DataFiles):
        return _own_files(study, study.data)
    cfg = run_config(study, study.runs()[0])
    register(cfg)
    limits = dict.fromkeys(cfg.DATASETS.TRAIN, cfg.SVP.MAX_UNREADABLE)
    limits.update(dict.fromkeys(cfg.DATASETS.TEST, 0.0))
    dropped = cfg.SVP.MAX_DROPPED
    return [registered_set(name, heads_of(cfg), limit, dropped) for name, limit in limits.items()]


def register_sets(file: Path) -> str:
    """Registers every data set of a study file and returns the study's name.

    Raises:
        UserError: the study file is wrong, or a data set cannot be used.
    """
    study = load_study(file, need_weights=False)
    register(run_config(study, study.runs()[0]))
    return study.name


def _own_files(study: Study, data: Data) -> list[DataSet]:
    heads, limit, dropped = None, 0.0, MOST_DROPPED
    with contextlib.suppress(UserError):  # which the check tells in full
        cfg = run_config(study, study.runs()[0])
        heads, limit, dropped = heads_of(cfg), cfg.SVP.MAX_UNREADABLE, cfg.SVP.MAX_DROPPED
    sources = {
        "train" if len(data.train) == 1 else f"train-{number}": source
        for number, source in enumerate(data.train, 1)
    }
    return [
        DataSet(part, one.annotations, one.images, heads=heads, unreadable=share, dropped=dropped)
        for part, one, share in (
            *((part, source, limit) for part, source in sources.items()),
            ("test", data.test, 0.0),
        )
        if isinstance(one, DataFiles)
    ]
