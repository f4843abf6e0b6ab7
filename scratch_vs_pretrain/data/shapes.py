"""The synthetic COCO-format data set `shapes`, and its single-object classification set.

Masks are COCO's compressed run lengths, because an object with another one in front of its middle
has a hole, which polygons cannot hold. Detectron2 reads them with ``INPUT.MASK_FORMAT: bitmask``
(its polygon mode takes no run lengths). Boxes and areas are those of the masks.

What an image shows is decided in :mod:`scratch_vs_pretrain.data.scenes`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scratch_vs_pretrain.data.scenes import (
    CLASSES,
    GENERATOR,
    ClassificationSpec,
    ShapesSpec,
    draw_scene,
)
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.progress import Bar
from scratch_vs_pretrain.run_folder import read_json, write_json

SPEC_FILE = "spec.json"
JPEG_QUALITY = 90


def make_shapes(folder: Path, spec: ShapesSpec | None = None, progress: bool = True) -> None:
    """Writes ``annotations/{train,test}.json`` and ``{train,test}/*.jpg`` under `folder`.

    A folder that holds this very data set is left as it is. A killed call leaves no `folder`.

    Raises:
        UserError: `folder` holds something else, or cannot be written.
    """
    _make(folder, spec or ShapesSpec(), "shapes", _write_detection, progress)


def make_classification(
    folder: Path, spec: ClassificationSpec | None = None, progress: bool = True
) -> None:
    """Writes ``{train,val}/<class>/*.jpg`` under `folder`, equally many images of each class.

    The rest is as in :func:`make_shapes`.
    """
    _make(folder, spec or ClassificationSpec(), "classification", _write_classes, progress)


def _write_detection(folder: Path, spec: ShapesSpec, bar: Bar) -> None:
    from pycocotools import mask as rle

    (folder / "annotations").mkdir()
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    size = {"width": spec.image_size, "height": spec.image_size}
    for split, count in (("train", spec.train), ("test", spec.test)):
        (folder / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            image, labels, masks = draw_scene(spec, split, number - 1)
            images.append({"id": number, "file_name": f"{number:06d}.jpg", **size})
            Image.fromarray(image).save(folder / split / f"{number:06d}.jpg", quality=JPEG_QUALITY)
            codes = rle.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
            for label, code in zip(labels, codes, strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": label + 1,
                        "bbox": rle.toBbox(code).tolist(),
                        "area": int(rle.area(code)),
                        "iscrowd": 0,
                        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                    }
                )
            bar.update()
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def _write_classes(folder: Path, spec: ShapesSpec, bar: Bar) -> None:
    for split, count in (("train", spec.train), ("val", spec.test)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
        for index in range(count):
            label = index % len(CLASSES)
            image, _, _ = draw_scene(spec, f"classification {split}", index, label)
            path = folder / split / CLASSES[label] / f"{index + 1:06d}.jpg"
            Image.fromarray(image).save(path, quality=JPEG_QUALITY)
            bar.update()


def _make(
    folder: Path,
    spec: ShapesSpec,
    kind: str,
    write: Callable[[Path, ShapesSpec, Bar], None],
    progress: bool,
) -> None:
    """Writes a data set beside `folder` and moves it there complete, unless it is there."""
    wanted = {"generator": GENERATOR, "kind": kind, **asdict(spec)}
    total = spec.train + spec.test
    try:
        if _holds(folder, wanted):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(".partial", f".{folder.name}.", folder.parent) as partial,
            Bar(total=total, desc=kind, unit="image", disable=not progress) as bar,
        ):
            made = Path(partial) / "made"
            made.mkdir()
            write(made, spec, bar)
            write_json(made / SPEC_FILE, wanted)
            try:
                made.replace(folder)
            except OSError:
                # Another process may have made the same meanwhile.
                if not _holds(folder, wanted):
                    raise
    except OSError as error:
        raise UserError(f"{folder}: cannot write the data set ({error.strerror})") from None


def _holds(folder: Path, wanted: dict[str, Any]) -> bool:
    """Tells whether `folder` holds the data set; False if there is nothing in it.

    Raises:
        UserError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    file = folder / SPEC_FILE
    found = read_json(file) if file.is_file() else None
    if not isinstance(found, dict):
        raise UserError(f"{folder}: in use for something else; choose another folder")
    for key, value in json.loads(json.dumps(wanted)).items():
        if found.get(key) != value:
            raise UserError(
                f"{folder}: holds another data set ({key} is {found.get(key)}, not {value}); "
                "choose another folder or delete this one"
            )
    return True
