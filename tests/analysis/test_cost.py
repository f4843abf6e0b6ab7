import math
from types import SimpleNamespace

import numpy as np
import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.runs.numbers import curve
from scratch_vs_pretrain.analysis.stats.cost import (
    axis_sentences,
    axis_title,
    cost,
    on_processors,
    total_hours,
)
from scratch_vs_pretrain.errors import UserError


def at_evaluations(folders, x, run=-1):
    """Returns the cost at each evaluation of a run, the last one by default."""
    one = load_runs(folders.root, plain=True)[run]
    return cost(one, x, curve(one, "bbox/AP").iterations).tolist()


NOTED = {"samples": {"images": 50, "instances": 50, "pixels": 1_000_000}}


def test_pixels_include_those_of_pretraining(folders):
    init = {"name": "checkpoint", "weights": "w.pth", "pretraining": NOTED}
    curve = {100: 5.0, 300: 10.0, 600: 20.0}
    samples = {"images": 4800, "instances": 9600, "pixels": 6000}
    folder = folders.run("pretrained", curve=curve, init=init, samples=samples, losses=False)
    folders.metrics(folder, [99, 199], **{"samples/pixels": 1000.0})
    # 0 at 0, 1,000 at 100 and 200, 6,000 at 600; straight between.
    assert at_evaluations(folders, "pixels") == [1_001_000, 1_002_250, 1_006_000]
    assert list(axis_sentences("pixels", load_runs(folders.root, plain=True))) == []


def test_pixels_of_weights_that_say_nothing_are_assumed(folders):
    folders.run("pretrained", samples={"images": 1, "instances": 1, "pixels": 600})
    assert at_evaluations(folders, "pixels") == [1_281_167 * 100 * 224**2 + 600]
    assert "Assumed of pretrained: pre-training on ImageNet" in " ".join(
        axis_sentences("pixels", load_runs(folders.root, plain=True))
    )
    assert list(axis_sentences("images", load_runs(folders.root, plain=True))) == []


def test_pixels_beyond_what_was_counted_are_unknown(folders):
    folders.run("scratch", curve={100: 5.0, 600: 10.0}, losses=False)
    assert np.isnan(at_evaluations(folders, "pixels")).all()
    folders.metrics(
        folders.root / "output/demo/scratch/600it/seed0", [299], **{"samples/pixels": 9}
    )
    first, second = at_evaluations(folders, "pixels")
    assert first == 3
    assert math.isnan(second)


def test_hours_are_those_of_all_devices(folders):
    curve = {300: 5.0, 600: 10.0}
    folders.run("scratch", curve=curve, seconds=7200.0, provenance={"processes": 8})
    assert at_evaluations(folders, "gpu-hours") == [8, 16]
    assert axis_title("gpu-hours", load_runs(folders.root, plain=True)) == "hours"
    folders.run("pretrained", seconds=None)
    (hours,) = at_evaluations(folders, "gpu-hours")
    assert math.isnan(hours)


def test_hours_of_processors_are_not_called_gpu_hours(folders):
    folders.run("scratch", seconds=60.0, provenance={"device": "cpu"})
    assert axis_title("gpu-hours", load_runs(folders.root, plain=True)) == "CPU hours"


def test_a_trunk_that_is_shared_costs_once(folders):
    folders.run("scratch", iterations=900, seconds=9000.0)
    taken = {"iteration": 500, "seconds": 5000.0}
    branch = {"of": "900it", "at": 500, "taken": taken}
    curve = {250: 10.0, 600: 20.0}
    folders.run("scratch", iterations=600, curve=curve, seconds=8600.0, branch=branch)
    runs = load_runs(folders.root)
    hours = total_hours(runs)
    assert hours == pytest.approx((12_600 / 3600, 17_600 / 3600))
    # The branch's own curve shows its whole cost.
    assert at_evaluations(folders, "gpu-hours", 0) == [
        pytest.approx(2500 / 3600),
        pytest.approx(8600 / 3600),
    ]


def test_total_hours_are_unknown_where_a_run_does_not_tell_its_own(folders):
    folders.run("scratch")
    assert total_hours(load_runs(folders.root)) is None
    assert total_hours([]) is None


def test_axes_that_need_no_clock(folders):
    folders.run("scratch", curve={100: 5.0, 600: 10.0})
    assert at_evaluations(folders, "images") == [800, 4800]
    assert at_evaluations(folders, "epochs") == [0.4, 2.4]
    with pytest.raises(UserError, match="unknown x axis 'miles'; choose one of iterations"):
        at_evaluations(folders, "miles")


def test_scores_of_the_log_fill_what_evaluations_lack(folders):
    folder = folders.run("scratch", curve={100: 5.0, 600: None}, losses=False)
    folders.metrics(folder, [299, 599], **{"bbox/AP": 7.0})
    found = curve(load_runs(folders.root, plain=True)[0], "bbox/AP")
    assert (found.iterations.tolist(), found.values.tolist()) == ([100, 300], [5.0, 7.0])


@pytest.mark.parametrize(
    ("devices", "cpu"),
    [(["cpu", None], True), (["H100", "A100"], False), (["cpu", "H100"], None), ([None], None)],
)
def test_hours_are_a_processors_by_the_runs_that_have_begun(devices, cpu):
    assert on_processors([SimpleNamespace(device=device) for device in devices]) is cpu
