"""What a data set's name means: registers a config's own sets and subsets with Detectron2.

Every process that resolves names goes through :func:`ensure`, so a name alone is enough anywhere.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    builtin_meta,
    load_coco_json,
    register_coco_instances,
    register_pascal_voc,
)

from scratch_vs_pretrain.data.coco import AnnotationFile, read_annotations, without_gc
from scratch_vs_pretrain.data.subset_cache import SubsetFile, subset_file
from scratch_vs_pretrain.data.subsets import ALIASES, Subset, parse_subset
from scratch_vs_pretrain.data.voc import is_voc, voc_index, voc_location
from scratch_vs_pretrain.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_BONE_COLOUR = (102, 204, 255)
_SUBSETS: dict[str, SubsetFile] = {}


def register(cfg: CfgNode) -> None:
    """Registers every data set of ``SVP.DATASETS`` and ``SVP.VOC_DATASETS`` with Detectron2, and
    the subsets that the config trains on.

    Registering the same again changes nothing. Keypoint names, flip pairs and skeleton come from
    the annotation file's categories.

    Raises:
        UserError: an entry is no such triple, its annotation file cannot be used, or its name
            stands for other files already; a subset cannot be drawn, or is to be evaluated on.
    """
    for entry in cfg.SVP.DATASETS:
        name, annotations, images = _triple(entry)
        if name not in DatasetCatalog:
            metadata = _keypoint_metadata(read_annotations(Path(annotations)))
            register_coco_instances(name, metadata, annotations, images)
            continue
        known = MetadataCatalog.get(name)
        paths = [os.path.abspath(known.get(key, "")) for key in ("json_file", "image_root")]
        if paths != [annotations, images]:
            raise UserError(
                f"SVP.DATASETS: {name} is the name of another data set already; choose another name"
            )
    for entry in cfg.SVP.VOC_DATASETS:
        _register_voc(entry)
    refuse_subsets(cfg.DATASETS.TEST)
    ensure((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


def find_subset(name: str, more: Iterable[str] = ()) -> Subset | None:
    """Returns the subset that a name means, None for the name of a full data set or of nothing.

    Reads no files. A registered name stands for itself, such as Detectron2's coco_2017_val_100.

    Args:
        name: of a data set.
        more: names that are not registered yet but can be the base.

    Raises:
        UserError: it reads like a subset's but makes no sense.
    """
    full = {*DatasetCatalog.list(), *more, *ALIASES} - _SUBSETS.keys()
    return None if name in full else parse_subset(name, full)


def ensure(names: Iterable[str]) -> None:
    """Registers those of the names that mean a subset, or are another name of a registered set.

    A subset has its base's metadata, with all categories, and an annotation file of its own.

    Raises:
        UserError: a subset makes no sense, or cannot be drawn from its base.
    """
    for name in names:
        if name in DatasetCatalog:
            continue
        if name in ALIASES:
            annotations, images = source(ALIASES[name])
            _register(name, ALIASES[name], annotations, images)
        elif subset := find_subset(name):
            annotations, images = source(subset.base)
            _SUBSETS[name] = subset_file(subset, annotations)
            _register(name, subset.base, _SUBSETS[name].file, images)


def refuse_subsets(names: Iterable[str], more: Iterable[str] = ()) -> None:
    """Raises UserError for a subset among the data sets to evaluate on; see :func:`find_subset`."""
    for name in names:
        if subset := find_subset(name, more):
            raise UserError(
                f"DATASETS.TEST: {name} is a subset of {subset.base}; evaluate on the full set, or "
                f"write a file of its own with `svp subset {name} --export FILE.json`"
            )


def annotations_of(name: str) -> AnnotationFile:
    """Returns what is to be known of a data set's annotation file.

    Raises:
        UserError: as :func:`source`, or the file cannot be used.
    """
    if is_voc(name):
        return voc_index(name)
    file, _ = source(name)
    return _SUBSETS[name].index if name in _SUBSETS else read_annotations(file)


def location(name: str) -> tuple[Path, Path]:
    """Returns what lists the images of a data set, and the folder that they are relative to.

    Raises:
        UserError: no such data set, or its files are missing.
    """
    return voc_location(name) if is_voc(name) else source(name)


def source(name: str) -> tuple[Path, Path]:
    """Returns the annotation file and image folder of a data set, registering it if need be.

    Raises:
        UserError: no such data set, it is not in COCO format, or its annotation file is missing.
    """
    ensure([name])
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=1)
        hint = f"did you mean {near[0]}?" if near else "state its files under data in a study"
        raise UserError(f"{name}: no such data set is registered; {hint}")
    known = MetadataCatalog.get(name)
    if known.get("json_file") is None or known.get("image_root") is None:
        raise UserError(f"{name}: is not in COCO format; choose a COCO-format data set")
    annotations = Path(known.json_file)
    if not annotations.is_file():
        raise UserError(f"{name}: no such annotation file as {annotations}{remedy(name)}")
    return annotations, Path(known.image_root)


def remedy(name: str) -> str:
    """Returns the end of a sentence about a data set whose files are missing."""
    if name.startswith(("coco_", "keypoints_coco_", "lvis_")):
        return "; set DETECTRON2_DATASETS to the folder that holds it"
    return ""


def _register(name: str, base: str, annotations: Path, images: Path) -> None:
    metadata = {**MetadataCatalog.get(base).as_dict(), "json_file": str(annotations)}
    del metadata["name"]
    DatasetCatalog.register(name, functools.partial(_load, str(annotations), str(images), name))
    MetadataCatalog.get(name).set(**metadata)


def _load(annotations: str, images: str, name: str) -> list[dict[str, Any]]:
    with without_gc():
        return load_coco_json(annotations, images, name)


def _register_voc(entry: Any) -> None:
    try:
        name, root, split, year, classes = entry
        classes = [str(one) for one in classes]
    except (TypeError, ValueError):
        raise UserError(
            f"SVP.VOC_DATASETS: {entry} must be [name, root, split, year, [class, ...]]"
        ) from None
    root = os.path.abspath(root)
    if name not in DatasetCatalog:
        register_pascal_voc(name, root, split, year, classes)
    known = MetadataCatalog.get(name)
    facts = [known.get(key) for key in ("dirname", "split", "year", "thing_classes")]
    if facts != [root, split, year, classes]:
        raise UserError(
            f"SVP.VOC_DATASETS: {name} is the name of another data set already; choose another name"
        )


def _triple(entry: Any) -> tuple[str, str, str]:
    strings = isinstance(entry, (list, tuple)) and all(isinstance(part, str) for part in entry)
    if not strings or len(entry) != 3 or not all(entry):
        raise UserError(f"SVP.DATASETS: {entry} must be [name, annotation file, image folder]")
    return entry[0], os.path.abspath(entry[1]), os.path.abspath(entry[2])


def _keypoint_metadata(file: AnnotationFile) -> dict[str, Any]:
    """Returns Detectron2's keypoint metadata, empty where no category has keypoints.

    The names of a keypoint and its mirror image differ in "left" and "right" alone.
    """
    names = file.keypoints
    if not names:
        return {}
    pairs = ((name, name.replace("left", "right")) for name in names)
    rules = [(names[a - 1], names[b - 1], _BONE_COLOUR) for a, b in file.skeleton]
    if names == builtin_meta.COCO_PERSON_KEYPOINT_NAMES:
        rules = builtin_meta.KEYPOINT_CONNECTION_RULES
    return {
        "keypoint_names": names,
        "keypoint_flip_map": tuple((a, b) for a, b in pairs if a != b and b in names),
        "keypoint_connection_rules": rules,
    }
