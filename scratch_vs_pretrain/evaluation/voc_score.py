"""VOC's AP as Detectron2's evaluator computes it, beside COCO's."""

from __future__ import annotations

import functools
import tempfile
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator

from scratch_vs_pretrain.data.coco import CocoFile
from scratch_vs_pretrain.data.voc import voc_file

# AP50 is the VOC benchmark's; of VOC 2007 with its 11-point metric.
NUMBERS = ("AP", "AP50", "AP75")


class VocScoreEvaluator(PascalVOCDetectionEvaluator):
    """Scores the task ``voc``; numbers are percent, and NaN where a class has no object.

    Detectron2's evaluator is given a copy of the tree, corners rounded and missing flags 0: it
    cannot read all (VOC 2012 has a few fractions, others lack flags, or list images with blank
    lines).
    """

    def __init__(self, dataset_name: str) -> None:
        super().__init__(_plain_copy(dataset_name, voc_file(dataset_name))[0])

    def evaluate(self) -> dict[str, dict[str, float]]:
        with warnings.catch_warnings():
            # It divides by the number of objects of each class.
            warnings.simplefilter("ignore", RuntimeWarning)
            found = super().evaluate()
        return {"voc": {name: float(found["bbox"][name]) for name in NUMBERS}} if found else {}


@functools.lru_cache(maxsize=4)
def _plain_copy(dataset_name: str, file: CocoFile) -> tuple[str, tempfile.TemporaryDirectory[str]]:
    """Returns a tree's copy that Detectron2's evaluator can read: registered name and folder."""
    folder = tempfile.TemporaryDirectory(prefix="svp_voc_")
    annotations, lists = Path(folder.name) / "Annotations", Path(folder.name) / "ImageSets/Main"
    annotations.mkdir()
    lists.mkdir(parents=True)
    trees = {image["id"]: ElementTree.Element("annotation") for image in file.images}
    (lists / "all.txt").write_text("".join(f"{one}\n" for one in trees))
    for one in file.annotations:
        entry = ElementTree.SubElement(trees[one["image_id"]], "object")
        fields = {"name": one["name"], "pose": "Unspecified", "truncated": "0"}
        for key, text in {**fields, "difficult": str(one["difficult"])}.items():
            ElementTree.SubElement(entry, key).text = text
        box = ElementTree.SubElement(entry, "bndbox")
        left, top, width, height = one["bbox"]
        corners = (left + 1, top + 1, left + width, top + height)
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            ElementTree.SubElement(box, key).text = str(round(value))
    for identity, top_element in trees.items():
        ElementTree.ElementTree(top_element).write(annotations / f"{identity}.xml")
    original, name = MetadataCatalog.get(dataset_name), f"{dataset_name} in {folder.name}"
    classes = original.thing_classes
    MetadataCatalog.get(name).set(
        dirname=folder.name, split="all", year=original.year, thing_classes=classes
    )
    return name, folder
