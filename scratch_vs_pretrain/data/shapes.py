"""The synthetic COCO-format data set `shapes`, and its single-object classification set.

A class is an outline and a coat, the texture that most of its objects wear. Colours, sizes and
stretch are drawn independently of it, so no colour tells the class: a network has to learn
features. Objects overlap; an object's mask is its visible part. Image i of a stream is a function
of (spec without its counts, stream, i) alone, and of the versions of NumPy and Pillow.

Masks are COCO's compressed run lengths, because an object with another one in front of its middle
has a hole, which polygons cannot hold. Detectron2 reads them with ``INPUT.MASK_FORMAT: bitmask``
(its polygon mode takes no run lengths). Boxes and areas are those of the masks.
"""

import functools
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from scratch_vs_pretrain.errors import UserError, writable
from scratch_vs_pretrain.progress import Bar
from scratch_vs_pretrain.run_folder import read_json, write_json

SPEC_FILE = "spec.json"
JPEG_QUALITY = 90
CLASSES = ("disc", "square", "triangle", "star", "cross", "ring", "crescent", "bar")
# Tips of an object in its own directions, before its rotation; a flip swaps left and right.
KEYPOINTS = ("right", "bottom", "left", "top")
_DIRECTIONS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
STREAMS = ("train", "test", "classification train", "classification val")
# An object that can be seen less is left out of the image: none is visible and unlabelled.
LEAST_VISIBLE = 0.25
# An object's centre keeps this part of its diameter from the image's border, which leaves
# LEAST_VISIBLE of the foremost object, whatever its outline and rotation.
BORDER = 0.3
# To be raised whenever the same spec would give other images.
GENERATOR = 1

# How far a point lies between a texture's two colours, from its phase along two axes.
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": lambda u, v: np.zeros_like(u),
    "gradient": lambda u, v: (u - u.min()) / (np.ptp(u) + np.float32(1e-6)),
    "stripes": lambda u, v: (np.sin(u) + 1) / 2,
    "checks": lambda u, v: np.sin(u) * np.sin(v) > 0,
    "dots": lambda u, v: np.sin(u) * np.sin(v) > 0.5,
}

# What most objects of a class wear: pattern and wave length in pixels.
COATS = (
    *(("plain", 8.0), ("stripes", 5.0), ("checks", 7.0), ("dots", 8.0)),
    *(("stripes", 11.0), ("gradient", 8.0), ("checks", 14.0), ("dots", 15.0)),
)


@dataclass(frozen=True)
class ShapesSpec:
    """What `shapes` is made of; with keypoints and without images and masks are the same."""

    train: int = 2000  # images
    test: int = 300
    seed: int = 0
    image_size: int = 128  # pixels a side
    objects: tuple[int, int] = (2, 5)  # fewest (at least 1) and most, before hidden ones go
    # Smallest (at least 6) and largest diameter of the circumscribed circle, pixels; log-uniform.
    object_size: tuple[int, int] = (20, 72)
    rotation: float = 0.3  # largest to either side, in radians
    typical: float = 0.8  # share of objects in their class's coat; the others wear any texture
    texture: float = 0.8  # contrast of the objects' textures: 0 plain, 1 full
    background: float = 0.2  # the same behind them
    clutter: int = 3  # most strokes drawn on the background
    noise: float = 5.0  # standard deviation of the brightness noise of a pixel, of 255
    blur: float = 0.8  # largest radius of the box blur, in pixels
    keypoints: bool = False  # annotate KEYPOINTS, too
    classes: int = len(CLASSES)  # how many of them, from the first


@dataclass(frozen=True)
class ClassificationSpec(ShapesSpec):
    """The same for the classification set; `test` counts the images under ``val/``, of which the
    foremost object, by default the only one, is the class."""

    train: int = 8000
    test: int = 800
    image_size: int = 64
    objects: tuple[int, int] = (1, 1)
    object_size: tuple[int, int] = (40, 62)


class Pose(NamedTuple):
    """Where an object is: its circumscribed circle, in which its outline is stretched along one
    axis, then rotated by `angle` radians."""

    centre: np.ndarray
    diameter: float
    stretch: float
    angle: float

    def placed(self, corners: np.ndarray) -> np.ndarray:
        """Returns corners (x, y) of the unit circle in pixels."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        turn = np.array([[cosine, sine], [-sine, cosine]])
        return (corners * (1, self.stretch)) @ turn * (self.diameter / 2) + self.centre


def draw_scene(
    spec: ShapesSpec, stream: str, index: int, foremost: int | None = None
) -> tuple[np.ndarray, list[int], np.ndarray, list[np.ndarray]]:
    """Draws image `index` of a stream; `foremost` sets the class of the foremost object.

    Returns:
        The image, uint8 (height, width, 3) in RGB; and of its objects, foremost first, the indices
        into :data:`CLASSES`, visible masks, bool (objects, height, width), and tips, (4, 2) pixels.
    """
    seed = np.random.SeedSequence(spec.seed, spawn_key=(STREAMS.index(stream), index))
    rng = np.random.default_rng(seed)
    image = _background(rng, spec)
    free = np.ones(image.shape[:2], bool)
    labels: list[int] = []
    masks: list[np.ndarray] = []
    tips: list[np.ndarray] = []
    for _ in range(rng.integers(spec.objects[0], spec.objects[1] + 1)):
        label = int(rng.integers(spec.classes))
        if foremost is not None and not labels:
            label = foremost
        diameter = math.exp(rng.uniform(*np.log(spec.object_size)))
        centre = rng.uniform(BORDER * diameter, spec.image_size - BORDER * diameter, 2)
        stretch, angle = rng.uniform(0.8, 1), rng.uniform(-spec.rotation, spec.rotation)
        pose = Pose(centre, diameter, stretch, angle)
        mask, area = silhouette(CLASSES[label], pose, spec.image_size)
        mask &= free
        if mask.sum() < LEAST_VISIBLE * area:
            continue
        rows, columns = np.nonzero(mask)
        coat = COATS[label] if rng.random() < spec.typical else None
        image[rows, columns] = _texture(rng, columns, rows, spec.texture, coat)
        free &= ~mask
        labels.append(label)
        masks.append(mask)
        # The outline's corners that reach furthest in the directions of KEYPOINTS.
        corners = _outline(CLASSES[label])[0]
        tips.append(pose.placed(corners[(corners @ _DIRECTIONS.T).argmax(0)]))
    # Blurred and then noisy, as by a camera.
    picture = Image.fromarray(image.astype(np.uint8))
    picture = picture.filter(ImageFilter.BoxBlur(rng.uniform(0, spec.blur)))
    noise = rng.standard_normal((*image.shape[:2], 1), np.float32) * np.float32(spec.noise)
    photograph = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
    return photograph, labels, np.stack(masks), tips


def silhouette(name: str, pose: Pose, image_size: int) -> tuple[np.ndarray, int]:
    """Returns an object's mask in the image, and its area with what lies outside the image."""
    margin = math.ceil(pose.diameter / 2) + 1
    canvas = Image.new("L", (image_size + 2 * margin,) * 2)
    for fill, corners in zip((1, 0), _outline(name), strict=False):
        points = pose.placed(corners) + margin
        ImageDraw.Draw(canvas).polygon(points.ravel().tolist(), fill=fill)
    whole = np.asarray(canvas, bool)
    return whole[margin:-margin, margin:-margin].copy(), int(whole.sum())


def _visible(tips: np.ndarray, mask: np.ndarray) -> list[float]:
    """Returns COCO keypoints: 2 where the object's mask is, 1 elsewhere, 0 outside the image."""
    keypoints: list[float] = []
    near = np.pad(mask, 2)
    for x, y in tips.round(2).tolist():
        column, row = round(x), round(y)
        inside = 0 <= column < mask.shape[1] and 0 <= row < mask.shape[0]
        seen = inside and near[row + 1 : row + 4, column + 1 : column + 4].any()
        keypoints += [x, y, 2 if seen else 1] if inside else [0, 0, 0]
    return keypoints


@functools.cache
def _outline(name: str) -> tuple[np.ndarray, ...]:
    """Returns an outline's corners (x, y) in the unit circle, then its hole's if it has one."""
    disc = _regular(48)
    tips = np.where(np.arange(10) % 2, 0.42, 1)
    arm = np.array([(0.95, -0.3), (0.95, 0.3), (0.3, 0.3)])
    quarter = np.array([(0, 1), (-1, 0)])
    return {
        "disc": (disc,),
        "square": (_regular(4),),
        "triangle": (_regular(3),),
        "star": (_regular(10) * tips[:, None],),
        "cross": (np.concatenate([arm @ np.linalg.matrix_power(quarter, k) for k in range(4)]),),
        "ring": (disc, 0.55 * disc),
        "crescent": (0.8 * disc + (0.28, 0), 0.68 * disc + (0.68, 0)),
        "bar": (np.array([(0.95, 0.31), (-0.95, 0.31), (-0.95, -0.31), (0.95, -0.31)]),),
    }[name]


def _regular(corners: int) -> np.ndarray:
    angles = np.arange(corners) * (2 * math.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _background(rng: np.random.Generator, spec: ShapesSpec) -> np.ndarray:
    rows, columns = np.indices((spec.image_size, spec.image_size))
    picture = Image.fromarray(_texture(rng, columns, rows, spec.background).astype(np.uint8))
    for _ in range(rng.integers(spec.clutter + 1)):
        points = rng.uniform(0, spec.image_size, 6).tolist()
        colour = tuple(rng.integers(256, size=3).tolist())
        ImageDraw.Draw(picture).line(points, fill=colour, width=int(rng.integers(1, 4)))
    return np.array(picture, np.float32)


def _texture(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    contrast: float,
    coat: tuple[str, float] | None = None,
) -> np.ndarray:
    """Returns a texture's RGB colours at pixels, float32, in the shape of `x` plus (3,).

    Colours and direction are random, pattern and wave length unless `coat` gives them.
    """
    first, second = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    pattern, length = list(PATTERNS)[rng.integers(len(PATTERNS))], rng.uniform(4, 24)
    if coat:
        pattern, length = coat[0], coat[1] * rng.uniform(0.85, 1.15)
    angle, wave = rng.uniform(0, 2 * math.pi), 2 * math.pi / length
    cosine, sine = wave * math.cos(angle), wave * math.sin(angle)
    x, y = x.astype(np.float32), y.astype(np.float32)
    blend = PATTERNS[pattern](x * cosine + y * sine, y * cosine - x * sine)
    return first + blend[..., None] * (np.float32(contrast) * (second - first))


def _write_detection(folder: Path, spec: ShapesSpec, bar: Bar) -> None:
    from pycocotools import mask as rle

    (folder / "annotations").mkdir()
    named = {"keypoints": list(KEYPOINTS), "skeleton": [[1, 3], [2, 4]]} if spec.keypoints else {}
    names = enumerate(CLASSES[: spec.classes], 1)
    categories = [{"id": number, "name": name, **named} for number, name in names]
    size = {"width": spec.image_size, "height": spec.image_size}
    for split, count in (("train", spec.train), ("test", spec.test)):
        (folder / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            image, labels, masks, tips = draw_scene(spec, split, number - 1)
            images.append({"id": number, "file_name": f"{number:06d}.jpg", **size})
            Image.fromarray(image).save(folder / split / f"{number:06d}.jpg", quality=JPEG_QUALITY)
            codes = rle.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
            for label, code, mask, points in zip(labels, codes, masks, tips, strict=True):
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
                if spec.keypoints:
                    keypoints = _visible(points, mask)
                    labelled = sum(visible > 0 for visible in keypoints[2::3])
                    annotations[-1] |= {"keypoints": keypoints, "num_keypoints": labelled}
            bar.update()
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def _write_classes(folder: Path, spec: ShapesSpec, bar: Bar) -> None:
    for split, count in (("train", spec.train), ("val", spec.test)):
        for name in CLASSES[: spec.classes]:
            (folder / split / name).mkdir(parents=True)
        for index in range(count):
            label = index % spec.classes
            image, *_ = draw_scene(spec, f"classification {split}", index, label)
            path = folder / split / CLASSES[label] / f"{index + 1:06d}.jpg"
            Image.fromarray(image).save(path, quality=JPEG_QUALITY)
            bar.update()


def make_shapes(folder: Path, spec: ShapesSpec, progress: bool = True) -> None:
    """Writes ``annotations/{train,test}.json`` and ``{train,test}/*.jpg`` under `folder`, or, of a
    :class:`ClassificationSpec`, ``{train,val}/<class>/*.jpg``, equally many of each class.

    A `folder` that holds this very data set is left as it is. A killed call leaves none.

    Raises:
        UserError: `folder` holds something else, or cannot be written.
    """
    kind, write = "shapes", _write_detection
    if isinstance(spec, ClassificationSpec):
        kind, write = "classification", _write_classes
    wanted = json.loads(json.dumps({"generator": GENERATOR, "kind": kind, **asdict(spec)}))
    if not spec.keypoints:
        del wanted["keypoints"]  # as it was before there were any
    with writable(folder):
        if _holds(folder, wanted):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(".partial", f".{folder.name}.", folder.parent) as partial,
            Bar(total=spec.train + spec.test, desc=kind, unit="image", disable=not progress) as bar,
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


def _holds(folder: Path, wanted: dict[str, Any]) -> bool:
    """Tells whether `folder` holds the data set; raises UserError if it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    file = folder / SPEC_FILE
    found = read_json(file) if file.is_file() else None
    if not isinstance(found, dict):
        raise UserError(f"{folder}: in use for something else; choose another folder")
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{folder}: holds another data set ({key} is {found.get(key)}, not {value}); "
                "choose another folder or delete this one"
            )
    return True
