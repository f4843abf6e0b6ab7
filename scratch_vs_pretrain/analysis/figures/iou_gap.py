"""The AP gap at each IoU threshold: the paper's third observation made visible."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from scratch_vs_pretrain.analysis.figures.lines import Line, line_of
from scratch_vs_pretrain.analysis.figures.panels import (
    TASKS,
    draw_line,
    label_arms,
    name_axes,
    sentences,
    subject,
)
from scratch_vs_pretrain.analysis.figures.style import add_caption, arm_styles, new_figure, plain
from scratch_vs_pretrain.errors import UserError


def iou_figure(frame: pd.DataFrame, scratch: str = "scratch", *, band: str = "range") -> Figure:
    """Draws the final AP gap scratch - pretrained at each IoU threshold, paired by seed.

    A gap that rises to the right says that pre-training helps localization least.

    Args:
        frame: the tidy frame of one study.
        scratch: the arm that the others are compared with.
        band: over seeds.

    Raises:
        UserError: no finished pair with AP per threshold.
    """
    finals = _final_ap_per_iou(frame)
    pairs = finals[finals.arm != scratch].merge(
        finals[finals.arm == scratch], on=["seed", "task", "iou"], suffixes=("", "_scratch")
    )
    if pairs.empty:
        raise UserError(
            "no seed has both arms finished and evaluated at each IoU threshold; "
            "the figure needs one such pair"
        )
    pairs["gap"] = pairs.value_scratch - pairs.value
    tasks = [task for task in TASKS if task in set(pairs.task)]
    styles = arm_styles(frame.arm.cat.categories)
    figure, axes = new_figure(len(tasks))
    panels: list[list[Line]] = []
    for ax, task in zip(axes, tasks, strict=True):
        panels.append([])
        ax.axhline(0, color="0.5", linewidth=0.8)
        for arm, group in pairs[pairs.task == task].groupby("arm", observed=True):
            table = group.pivot(index="iou", columns="seed", values="gap").dropna()
            line = line_of(str(arm), "", table.index.to_numpy(), table, band, True)
            draw_line(ax, line, styles[line.arm])
            panels[-1].append(line)
        name_axes(ax, f"{TASKS[task]} AP gap, {plain(scratch)} less the other arm", "IoU threshold")
    gap = (
        f"{subject(frame, [])} Final AP at each arm's longest schedule, paired by seed; "
        f"above 0, {scratch} is better than the arm named."
    )
    add_caption(figure, [gap, *sentences(panels, band, [])])
    for ax, lines in zip(axes, panels, strict=True):
        label_arms(ax, lines, styles)
    return figure


def _final_ap_per_iou(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows "bbox/AP@0.75" of each arm's longest schedule with task and iou."""
    names = [name for name in frame.metric.cat.categories if "/AP@" in name]
    frame = frame[frame.metric.isin(names)]
    parts = frame.metric.astype(str).str.extract(r"^([^/]+)/AP@([0-9.]+)$")
    frame = frame.assign(task=parts[0], iou=parts[1].astype(float))
    frame = frame[frame.iou.notna() & (frame.state == "finished")]
    last = frame.groupby("arm", observed=True).iteration.transform("max")
    return frame[frame.iteration == last].dropna(subset=["value"])
