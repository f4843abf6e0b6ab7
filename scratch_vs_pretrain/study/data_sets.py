"""The data sets that a study trains and evaluates on, to be checked."""

from __future__ import annotations

from pathlib import Path

from scratch_vs_pretrain.data.check import DataSet, registered_set
from scratch_vs_pretrain.study.merge import run_config
from scratch_vs_pretrain.study.parse import load_study


def study_sets(file: Path) -> list[DataSet]:
    """Returns every data set of a study file.

    Its own ``data`` are taken as they are, so that what is wrong with them can be listed.

    Raises:
        UserError: the study file is wrong, or a data set is not there.
    """
    study = load_study(file, need_weights=False)
    if study.data:
        parts = {"train": study.data.train, "test": study.data.test}
        return [DataSet(part, one.annotations, one.images) for part, one in parts.items()]
    cfg = run_config(study, study.runs()[0])
    names = dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    return [registered_set(name) for name in names]
