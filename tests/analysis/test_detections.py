import json

import numpy as np
import pytest
from PIL import Image

from scratch_vs_pretrain.analysis.figures.detections import (
    TRUTH,
    detections_figure,
    judged,
    read_detections,
)
from scratch_vs_pretrain.analysis.figures.panels import COLORS, SCRATCH_COLOR
from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.errors import UserError


def found(category, score, box, **more):
    return {"category": category, "score": score, "box": box, **more}


# Half of the disc is not half of the union: a third.
SHIFTED = found("disc", 0.9, [16, 8, 16, 16])
RING = [[8, 8, 24, 8, 24, 24, 8, 24], [12, 12, 12, 20, 20, 20, 20, 12]]
EXACT = found("disc", 0.8, [8, 8, 16, 16], outline=RING)
AGAIN = found("disc", 0.7, [9, 8, 16, 16])
AS_STAR = found("star", 0.6, [8, 8, 16, 16])
FAR = found("star", 0.6, [1e15, 8, 16, 16])
UNSURE = found("star", 0.49, [40, 8, 16, 16])


@pytest.fixture
def pair(folders):
    for arm, made in (("scratch", [UNSURE, AGAIN, EXACT, SHIFTED, AS_STAR]), ("pretrained", [])):
        for schedule, iterations in (("short", 300), ("long", 600)):
            for seed in (0, 1):
                folder = folders.run(arm, seed, schedule=schedule, iterations=iterations)
                folders.detections(folder, made, iterations)
    return folders


def test_what_is_right_is_of_the_class_overlaps_and_comes_first(pair):
    [picture] = read_detections(load_runs(pair.root)[0]).pictures
    assert [(one.score, right) for one, right in judged(picture)] == [
        (0.9, False),
        (0.8, True),
        (0.7, False),
        (0.6, False),
    ]


def test_each_arm_stands_beside_the_ground_truth(pair):
    figure = detections_figure(load_runs(pair.root))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "ground truth"
    assert {title.splitlines()[1] for title in titles[1:]} == {"long, 600 iterations"}
    assert {title.splitlines()[0] for title in titles[1:]} == {"scratch", "pretrained"}
    texts = {ax.get_title().splitlines()[0]: [t.get_text() for t in ax.texts] for ax in figure.axes}
    assert texts["ground truth"] == ["disc", "star"]
    assert texts["scratch"] == ["disc 0.90", "disc 0.80", "disc 0.70", "star 0.60"]
    assert texts["pretrained"] == []
    short = detections_figure(load_runs(pair.root), schedule="short")
    assert "short, 300 iterations" in short.axes[1].get_title()


def test_from_the_command_line_and_in_the_report(pair, tmp_path, capsys):
    out = tmp_path / "out.svg"
    command = ["plot", str(pair.root / "output/demo"), "--figure", "detections", "-o", str(out)]
    assert main([*command, "--images", "1"]) == 0
    assert "disc 0.80" in out.read_text()
    assert main(["report", str(pair.root / "output"), "-o", str(tmp_path / "report.html")]) == 0
    assert "The same test pictures" in (tmp_path / "report.html").read_text()


def test_what_is_not_there_is_named(folders, pair):
    (pair.root / "picture.png").unlink()
    with pytest.raises(UserError, match=r"picture\.png: the test picture cannot be read"):
        detections_figure(load_runs(pair.root))
    other = folders.run("scratch", study="other")
    runs = [run for run in load_runs(folders.root) if run.study == "other"]
    with pytest.raises(UserError, match=r"no run has a detections\.json"):
        detections_figure(runs)
    file = folders.detections(other)
    content = json.loads(file.read_text())
    del content["pictures"][0]["width"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"detections\.json: 'pictures\.0\.width' is missing"):
        detections_figure(runs)


@pytest.mark.parametrize("change", [{"height": 0}, {"width": 10**9}, {"objects": [AS_STAR, FAR]}])
def test_pictures_of_a_damaged_file_are_left_out(folders, change):
    file = folders.detections(folders.run("scratch"))
    content = json.loads(file.read_text())
    content["pictures"][0].update(change)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="no picture together that can be drawn"):
        detections_figure(load_runs(folders.root))


def test_deep_pictures_are_drawn_as_they_were_trained_on(pair):
    pixels = np.resize(np.array([0, 4095, 2048], np.uint16), (48, 64))
    Image.fromarray(pixels).save(pair.root / "picture.png")
    figure = detections_figure(load_runs(pair.root))
    drawn = figure.axes[0].images[0].get_array()
    assert (drawn[..., 0] == np.resize([0, 255, 128], (48, 64))).all()


def test_the_truth_has_a_colour_of_its_own_and_titles_are_whole(pair):
    for arm in ("an arm with a long name of several lines", "b"):
        pair.detections(pair.run(arm))
    assert TRUTH not in (SCRATCH_COLOR, *COLORS)
    figure = detections_figure(load_runs(pair.root), images=1)
    figure.canvas.draw()
    tops = [ax.title.get_window_extent().y1 for ax in figure.axes]
    assert max(tops) <= figure.bbox.height
