import numpy as np
import pandas as pd
import pytest

from scratch_vs_pretrain.analysis.figures.lines import Line
from scratch_vs_pretrain.analysis.figures.panels import (
    draw_line,
    label_arms,
    metric_title,
    sentences,
    subject,
)
from scratch_vs_pretrain.analysis.figures.style import arm_styles, new_figure

STYLES = arm_styles(["scratch", "pretrained"])


def line(arm="scratch", schedule="2x", seeds=1, complete=True, x=(1, 2, 3)):
    mean = np.arange(len(x), dtype=float)
    return Line(arm, schedule, np.array(x), mean, mean - 1, mean + 1, seeds, complete)


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("bbox/AP", "Box AP (%)"),
        ("keypoints/AP75", "Keypoint AP75 (%)"),
        ("total_loss", "Training loss"),
        ("loss_cls", "loss_cls"),
    ],
)
def test_metric_title(metric, title):
    assert metric_title(metric) == title


def test_line_is_drawn_from_a_point_on_with_its_band():
    _, (ax,) = new_figure(1)
    draw_line(ax, line(seeds=3), STYLES["scratch"], start=1)
    assert ax.lines[0].get_xdata().tolist() == [2, 3]
    assert ax.lines[0].get_marker() == "o"
    (band,) = ax.collections
    assert band.get_paths()[0].vertices[:, 0].min() == 2


def test_many_points_have_no_markers():
    _, (ax,) = new_figure(1)
    draw_line(ax, line(x=range(100)), STYLES["scratch"])
    assert ax.lines[0].get_marker() == "None"


def test_label_stands_at_the_end_of_an_early_line():
    _, (ax,) = new_figure(1)
    lines = [line(x=(1, 2)), line("pretrained", x=(5, 10))]
    for each in lines:
        draw_line(ax, each, STYLES[each.arm])
    ax.set_xlim(0, 10)
    label_arms(ax, lines, STYLES)
    assert {text.get_text(): text.xy[0] for text in ax.texts} == {"scratch": 2, "pretrained": 10}


def test_captions():
    text = " ".join(
        sentences([[line(seeds=3), line(seeds=2), line(complete=False)]], "std", ["total_loss"])
    )
    assert "mean of 2 or 3 seeds; band: one standard deviation" in text
    assert "Dashed" in text
    assert "smoothed" in text
    assert list(sentences([[line()]], "range", ["bbox/AP"])) == ["One run per line."]


def test_subject_names_schedules_where_there_is_one_for_each_arm():
    frame = pd.DataFrame({"study": ["s"]})
    assert subject(frame, [[line(), line("pretrained")]]) == "s, 2x."
    assert subject(frame, [[line(), line("pretrained", "1x")]]) == "s: scratch 2x, pretrained 1x."
    assert subject(frame, [[line(), line(schedule="3x")]]) == "s."
