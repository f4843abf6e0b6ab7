"""Reads a study's ``data``."""

from __future__ import annotations

import re
from typing import Any

from scratch_vs_pretrain.study.spec import Data, DataFiles, VocTree
from scratch_vs_pretrain.study.yaml_fields import (
    Place,
    read_file,
    read_folder,
    read_integer,
    read_list,
    read_mapping,
    read_text,
    read_texts,
    refuse_repeated,
)

FILE_KEYS = ("annotations", "images")
TREE_KEYS = ("voc", "split", "year")
YEARS = (2007, 2012)


def read_data(value: Any, place: Place) -> Data:
    """Returns the data that ``{train: ..., test: ...}`` means; `train` may be a list.

    Each is ``{annotations: FILE, images: DIR}`` or ``{voc: DIR, split: NAME, year: 2012}``.

    Raises:
        UserError: whatever is wrong, in one sentence that names file and key.
    """
    parts = read_mapping(value, place, ("train", "test", "classes"), required=("train", "test"))
    train, at = parts["train"], place / "train"
    if isinstance(train, list):
        items = read_list(train, at, least=1)
        sources = tuple(_source(item, at / str(number)) for number, item in enumerate(items))
        refuse_repeated(sources, at)
    else:
        sources = (_source(train, at),)
    test = _source(parts["test"], place / "test")
    if len({type(source) for source in (*sources, test)}) > 1:
        raise place.error("COCO files and VOC trees cannot be mixed; convert one of them")
    classes = read_texts(parts["classes"], place / "classes") if "classes" in parts else ()
    if classes and not isinstance(test, VocTree):
        raise (place / "classes").error("the categories of COCO files are stated there; remove it")
    return Data(sources, test, classes)


def _source(value: Any, place: Place) -> DataFiles | VocTree:
    folder = place.file.parent
    if isinstance(value, dict) and "voc" in value:
        fields = read_mapping(value, place, TREE_KEYS, required=("voc", "split"))
        root = read_folder(fields["voc"], place / "voc", folder)
        split = read_text(fields["split"], place / "split")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", split, re.ASCII):
            raise (place / "split").error(f"{split} names no list; such as trainval or val")
        if not (root / "ImageSets" / "Main" / f"{split}.txt").is_file():
            listing = root / "ImageSets" / "Main" / f"{split}.txt"
            raise (place / "split").error(f"{listing}: no such file")
        year = read_integer(fields.get("year", YEARS[-1]), place / "year", *YEARS)
        if year not in YEARS:
            raise (place / "year").error(f"the metric is that of 2007 or of 2012, not of {year}")
        return VocTree(root, split, year)
    fields = read_mapping(value, place, (*FILE_KEYS, *TREE_KEYS), required=FILE_KEYS)
    if len(fields) > len(FILE_KEYS):
        raise place.error("give annotations and images, or voc and split")
    images = read_folder(fields["images"], place / "images", folder)
    return DataFiles(read_file(fields["annotations"], place / "annotations", folder), images)
