"""What is in a COCO annotation file, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.data.coco import read_annotations
from scratch_vs_pretrain.run_folder import read_json

# COCO's sizes: areas in pixels, of the image as it is on disk.
SMALL, LARGE = 32**2, 96**2


@dataclass(frozen=True)
class Statistics:
    """Counts of one data set.

    Attributes:
        images: all of them.
        empty: images without an instance.
        instances: annotations that are no crowds.
        crowds: annotations that are.
        present: categories that have instances, with their number, in the order of the ids.
        absent: categories that have none.
        sizes: instances that are small, medium and large by COCO's definition.
    """

    images: int
    empty: int
    instances: int
    crowds: int
    present: Mapping[str, int]
    absent: tuple[str, ...]
    sizes: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Returns all of it, and instances per image."""
        return {
            "images": self.images,
            "images_without_instances": self.empty,
            "instances": self.instances,
            "crowds": self.crowds,
            "instances_per_image": self.instances / self.images if self.images else None,
            "sizes": dict(self.sizes),
            "categories": dict(self.present),
            "absent_categories": list(self.absent),
        }


def count(file: Path) -> Statistics:
    """Counts what a COCO annotation file holds.

    An instance without ``area`` counts with its box's.

    Raises:
        UserError: it is missing, no JSON, or not in COCO format.
    """
    read_annotations(file)
    content = read_json(file)
    instances = [entry for entry in content["annotations"] if not entry.get("iscrowd")]
    categories = sorted(content["categories"], key=lambda category: category["id"])
    of_category = Counter(entry["category_id"] for entry in instances)
    sizes = Counter(_size(entry) for entry in instances)
    annotated = {entry["image_id"] for entry in instances}
    return Statistics(
        images=len(content["images"]),
        empty=sum(image["id"] not in annotated for image in content["images"]),
        instances=len(instances),
        crowds=len(content["annotations"]) - len(instances),
        present={c["name"]: of_category[c["id"]] for c in categories if of_category[c["id"]]},
        absent=tuple(c["name"] for c in categories if not of_category[c["id"]]),
        sizes={size: sizes[size] for size in ("small", "medium", "large")},
    )


def _size(entry: Mapping[str, Any]) -> str:
    _, _, width, height = entry["bbox"]
    area = entry.get("area")
    if not isinstance(area, (int, float)):
        area = width * height
    # COCO's ranges include both ends; the smaller one gets what lies on a border.
    return "small" if area <= SMALL else "medium" if area <= LARGE else "large"
