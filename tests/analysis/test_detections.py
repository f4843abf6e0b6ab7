import json

import pytest

from scratch_vs_pretrain.analysis.figures.detections import (
    detections_figure,
    judged,
    read_detections,
)
from scratch_vs_pretrain.analysis.runs.records import load_runs
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
