import math

import pytest

from scratch_vs_pretrain.analysis.runs.frame import tidy
from scratch_vs_pretrain.analysis.runs.records import find_runs, load_runs
from scratch_vs_pretrain.analysis.stats.cost import (
    axis_sentences,
    axis_title,
    total_hours,
    with_costs,
)


def costed(folders):
    runs = find_runs(folders.root)
    return with_costs(tidy(runs), runs)


def ap_rows(folders):
    frame = costed(folders)
    return frame[frame.metric == "bbox/AP"]


NOTED = {"samples": {"images": 50, "instances": 50, "pixels": 1_000_000}}


def test_pixels_include_those_of_pretraining(folders):
    init = {"name": "checkpoint", "weights": "w.pth", "pretraining": NOTED}
    curve = {100: 5.0, 300: 10.0, 600: 20.0}
    samples = {"images": 4800, "instances": 9600, "pixels": 6000}
    folder = folders.run("pretrained", curve=curve, init=init, samples=samples, losses=False)
    folders.metrics(folder, [99, 199], **{"samples/pixels": 1000.0})
    # 0 at 0, 1,000 at 100 and 200, 6,000 at 600; straight between.
    assert ap_rows(folders).pixels.tolist() == [1_001_000, 1_002_250, 1_006_000]
    assert not ap_rows(folders).assumed.any()


def test_pixels_of_weights_that_say_nothing_are_assumed(folders):
    folders.run("pretrained", samples={"images": 1, "instances": 1, "pixels": 600})
    rows = ap_rows(folders)
    assert rows.pixels.tolist() == [1_281_167 * 100 * 224**2 + 600]
    assert "Assumed of pretrained: pre-training on ImageNet" in " ".join(
        axis_sentences("pixels", rows)
    )
    assert list(axis_sentences("images", rows)) == []


def test_pixels_beyond_what_was_counted_are_unknown(folders):
    folders.run("scratch", curve={100: 5.0, 600: 10.0}, losses=False)
    assert ap_rows(folders).pixels.isna().all()
    folders.metrics(
        folders.root / "output/demo/scratch/600it/seed0", [299], **{"samples/pixels": 9}
    )
    assert ap_rows(folders).pixels.tolist()[:1] == [3]
    assert math.isnan(ap_rows(folders).pixels.tolist()[1])


def test_hours_are_those_of_all_devices(folders):
    curve = {300: 5.0, 600: 10.0}
    folders.run("scratch", curve=curve, seconds=7200.0, provenance={"processes": 8})
    assert ap_rows(folders).gpu_hours.tolist() == [8, 16]
    assert axis_title("gpu-hours", costed(folders)) == "GPU hours"
    folders.run("pretrained", seconds=None)
    assert math.isnan(ap_rows(folders).gpu_hours.iloc[-1])


def test_hours_of_processors_are_not_called_gpu_hours(folders):
    folders.run("scratch", seconds=60.0, provenance={"device": "cpu"})
    assert axis_title("gpu-hours", costed(folders)) == "CPU hours"


def test_a_trunk_that_is_shared_costs_once(folders):
    folders.run("scratch", iterations=900, seconds=9000.0)
    taken = {"iteration": 500, "seconds": 5000.0}
    branch = {"of": "900it", "at": 500, "taken": taken}
    curve = {250: 10.0, 600: 20.0}
    folders.run("scratch", iterations=600, curve=curve, seconds=8600.0, branch=branch)
    runs = load_runs(folders.root)
    hours = total_hours(runs)
    assert hours.alone == pytest.approx(17_600 / 3600)
    assert hours.spent == pytest.approx(12_600 / 3600)
    # The branch's own curve shows its whole cost.
    rows = ap_rows(folders)
    hours = rows[rows.schedule == "600it"].gpu_hours.tolist()
    assert hours == [pytest.approx(2500 / 3600), pytest.approx(8600 / 3600)]


def test_total_hours_are_unknown_where_a_run_does_not_tell_its_own(folders):
    folders.run("scratch")
    assert total_hours(load_runs(folders.root)) is None
    assert total_hours([]) is None
