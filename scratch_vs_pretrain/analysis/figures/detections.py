"""What the arms detect in the same test pictures, side by side with the ground truth."""

import itertools
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from PIL import Image, ImageOps
from pydantic import ValidationError

from scratch_vs_pretrain.analysis.figures.panels import (
    PAGE_WIDTH,
    SMALL_TEXT_SIZE,
    TEXT_SIZE,
    add_caption,
    new_figure,
    plain,
    shortened,
    styles_of,
)
from scratch_vs_pretrain.analysis.runs import Records, RunRecord
from scratch_vs_pretrain.errors import UserError, from_validation
from scratch_vs_pretrain.pictures import IMAGE_ERRORS, deep_as_rgb
from scratch_vs_pretrain.run_folder import RunFolder, read_bytes
from scratch_vs_pretrain.run_info import Detections, Found, Picture
from scratch_vs_pretrain.text import cut

# What Detectron2's demo.py shows by default; below, even good detectors guess.
SCORE = 0.5
# A detection finds an object of its class at this overlap of boxes, as in AP50.
OVERLAP = 0.5
LARGEST_SIDE = 480
CAPTION_INCHES = 0.7
TITLE_LINE_INCHES = 0.3
# No arm's colour.
TRUTH = "#6A3D9A"
# What a damaged file may hold beyond these is not drawn.
LONGEST_CATEGORY = 40
MOST_FOUND = 300
NARROWEST = 1 / 50
FARTHEST = 10
WRONG = "#000000"


def detections_figure(runs: Records, *, images: int = 6, schedule: str | None = None) -> Figure:
    """Draws the first test pictures, a row for each, with the objects and each arm's detections.

    Of each arm its first seed with the longest schedule, or with another one, is shown.
    """
    shown = [(run, read_detections(run)) for run in _chosen(runs, schedule)]
    if not shown:
        raise UserError(
            "no run has a detections.json, which every evaluation writes; for older runs: "
            "svp predict RUN --dataset NAME with the data set they were evaluated on"
        )
    of_arms = [{one.file: one for one in found.pictures} for _, found in shown]
    common = [f for f in of_arms[0] if all(f in m and _can_be_drawn(m[f]) for m in of_arms)]
    if not common:
        raise UserError(
            "the arms were evaluated on no picture together that can be drawn; draw them apart"
        )
    heads = [("ground truth", TRUTH)]
    for run, found in shown:
        title = f"{shortened(run.arm)}\n{run.schedule}, {found.iteration:,} iterations"
        heads.append((plain(title), styles_of(runs)[run.arm].color))
    first = [of_arms[0][file] for file in common[:images]]
    # A higher picture is drawn smaller.
    height = sum(PAGE_WIDTH / len(heads) * min(one.height / one.width, 3) for one in first)
    height += TITLE_LINE_INCHES * max(title.count("\n") + 1 for title, _ in heads) + CAPTION_INCHES
    figure, axes = new_figure(len(heads), rows=len(first), width=PAGE_WIDTH, height=height)
    for row, picture in enumerate(first):
        panels = axes[row * len(heads) : (row + 1) * len(heads)]
        detected = [mine[picture.file] for mine in of_arms]
        _draw_row(panels, picture, detected, [color for _, color in heads[1:]])
    for ax, (title, color) in zip(axes, heads, strict=False):
        ax.set_title(title, fontsize=TEXT_SIZE, color=color)
    caption = (
        f"{runs[0].study}: the first pictures of {shown[0][1].dataset}.",
        f"Detections with a score of at least {SCORE}; dashed and black where no object of the "
        f"class overlaps by {OVERLAP}, or a better detection has it.",
    )
    add_caption(figure, caption)
    return figure


def _draw_row(
    panels: Sequence[Axes], truth: Picture, detected: Sequence[Picture], colors: Sequence[str]
) -> None:
    """Draws a picture with its objects, and again with what each arm detects, in its colour."""
    pixels = _pixels(truth)
    for ax in panels:
        ax.imshow(pixels, extent=(0, truth.width, truth.height, 0))
        ax.set_axis_off()
    for one in truth.objects[:MOST_FOUND]:
        _draw(panels[0], one, TRUTH, cut(one.category, LONGEST_CATEGORY))
    for ax, picture, color in zip(panels[1:], detected, colors, strict=True):
        for one, right in judged(picture):
            label = f"{cut(one.category, LONGEST_CATEGORY)} {one.score:.2f}"
            _draw(ax, one, color if right else WRONG, label, dashed=not right)


def read_detections(run: RunRecord) -> Detections:
    """Reads what a run found in the first test pictures; refuses a damaged file."""
    file = RunFolder(run.folder).detections_file
    try:
        return Detections.model_validate_json(read_bytes(file))
    except ValidationError as error:
        raise from_validation(error, file, "restore it, or delete it") from None


def judged(picture: Picture) -> Iterator[tuple[Found, bool]]:
    """Yields the detections that are shown, the best first, and whether each finds an object."""
    left = list(picture.objects)
    for one in sorted(picture.detections, key=lambda one: -one.score)[:MOST_FOUND]:
        if one.score < SCORE:
            return
        overlaps = [_overlap(one, other) * (one.category == other.category) for other in left]
        right = max(overlaps, default=0.0) >= OVERLAP
        if right:
            left.pop(int(np.argmax(overlaps)))
        yield one, right


def _chosen(runs: Records, schedule: str | None) -> Iterator[RunRecord]:
    """Yields a run of each arm."""
    there = [
        run
        for run in runs
        if RunFolder(run.folder).detections_file.is_file() and schedule in (None, run.schedule)
    ]
    for arm in dict.fromkeys(run.arm for run in there):
        mine = (run for run in there if run.arm == arm)
        yield min(mine, key=lambda run: (-run.iterations, run.seed or 0))


def _overlap(one: Found, other: Found) -> float:
    """Returns the intersection of two boxes over their union."""
    (x, y, width, height), (left, top, wide, high) = one.box, other.box
    across = min(x + width, left + wide) - max(x, left)
    down = min(y + height, top + high) - max(y, top)
    common = max(0.0, across) * max(0.0, down)
    union = width * height + wide * high - common
    return common / union if union > 0 else 0.0


def _can_be_drawn(picture: Picture) -> bool:
    """Tells whether a picture has a shape, and all that is in it lies in or near it."""
    shorter, longer = sorted((picture.height, picture.width))
    found = (*picture.objects, *picture.detections)
    places = (value for one in found for value in itertools.chain(one.box, *one.outline))
    near = all(abs(value) <= FARTHEST * longer for value in places)
    return shorter > 0 and shorter >= NARROWEST * longer and near


def _pixels(picture: Picture) -> np.ndarray:
    try:
        upright = deep_as_rgb(FilePath(picture.file))
        if upright is None:
            with Image.open(picture.file) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
    except (*IMAGE_ERRORS, struct.error) as error:
        raise UserError(
            f"{picture.file}: the test picture cannot be read ({error}); put it back there"
        ) from None
    upright.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return np.asarray(upright)


def _draw(ax: Axes, one: Found, color: str, label: str, dashed: bool = False) -> None:
    (x, y, *sides), line = one.box, "--" if dashed else "-"
    ax.add_patch(
        Rectangle((x, y), *sides, fill=False, edgecolor=color, linewidth=1, linestyle=line)
    )
    outlines = [np.reshape(line[: len(line) // 2 * 2], (-1, 2)) for line in one.outline]
    if paths := [Path(line, closed=True) for line in outlines if len(line) > 2]:
        # Together, so that the outline of a hole leaves it free.
        mask = Path.make_compound_path(*paths)
        ax.add_patch(PathPatch(mask, facecolor=color, alpha=0.3, edgecolor="none"))
    background = {"facecolor": color, "edgecolor": "none", "pad": 0.8, "alpha": 0.8}
    size = SMALL_TEXT_SIZE - 2
    text = ax.text(x, y, plain(label), fontsize=size, va="bottom", clip_on=True, bbox=background)
    text.set_color("white")
