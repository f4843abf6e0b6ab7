"""A branch begins where its trunk is, and ends as if it had been trained alone."""

import json
from dataclasses import replace

import pytest

from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.spec import load_study
from scratch_vs_pretrain.training import __main__ as worker
from scratch_vs_pretrain.training import checkpoint

# "short" is what "long" is for three iterations.
SCHEDULES = [
    {"iterations": 5, "name": "short", "drops_before_end": [2, 1]},
    {"iterations": 8, "name": "long", "drops_before_end": [2, 1]},
]


@pytest.fixture
def plan(write_study, tmp_path):
    def plan(output, sharing=True, **fields):
        fields = {"schedules": SCHEDULES, "evaluation": {"period": 3, "at": [1]}, **fields}
        study = replace(load_study(write_study(**fields)), sharing=sharing)
        return prepare(study, tmp_path / output)

    return plan


# Both schedules, trained by themselves: once, and read by several tests.
ALONE = {}


@pytest.fixture
def trained_alone(plan):
    def make(name):
        if name not in ALONE:
            runs = plan(f"{name} alone", sharing=False)
            (ALONE[name],) = (run for run in runs if run.read().schedule == name)
            train(ALONE[name])
        return ALONE[name]

    return make


def train(*folders):
    for folder in folders:
        assert worker.main([str(folder.path)]) == worker.FINISHED


def iterations_kept(folder):
    return sorted(int(file.stem) for file in folder.checkpoints.iterdir())


def test_a_branch_equals_the_same_schedule_trained_alone(plan, assert_same, trained_alone):
    """Weights, momentum, curve and evaluations, bit for bit; and it costs its own part alone."""
    short, long = plan("shared")
    assert not checkpoint.is_ready(short)
    train(long)
    assert checkpoint.is_ready(short)
    train(short)
    alone = trained_alone("short")
    assert_same(short, alone)
    assert_same(long, trained_alone("long"))
    assert alone.read().branch is None
    run = short.read().model_dump(mode="json")
    taken = run["branch"]["taken"]
    assert (run["branch"]["of"], run["branch"]["at"], taken["iteration"]) == ("long", 3, 3)
    assert 0 < taken["seconds"] < run["seconds"]
    assert run["resumes"] == []
    assert short.read().samples == alone.read().samples


def test_branch_points_outlive_other_checkpoints(plan):
    short, long = plan("shared", overrides={"SVP.KEEP_CHECKPOINTS": 1})
    train(long)
    assert iterations_kept(long) == [3, 6, 8]  # 6: its own first drop
    train(short)
    assert iterations_kept(short) == [3, 5]
    assert iterations_kept(long) == [3, 6, 8]


def test_a_branch_killed_at_its_beginning_begins_anew(
    plan, monkeypatch, assert_same, trained_alone
):
    short, long = plan("shared")
    train(long)
    with monkeypatch.context() as patch:

        def die(*_):
            raise OSError(28, "No space left on device")

        patch.setattr("os.link", die)
        patch.setattr("shutil.copyfileobj", die)
        assert worker.main([str(short.path)]) == worker.FAILED
    assert "No space left" in short.read().reason
    # What is there until then is the trunk's up to where it leaves it, for all who read it.
    lines = [json.loads(line)["iteration"] for line in short.metrics_file.open()]
    assert lines
    assert max(lines) < short.read().branch.at
    train(short)
    assert_same(short, trained_alone("short"))


def test_a_stopped_branch_resumes_in_its_own_part(plan, assert_same, train_until, trained_alone):
    short, long = plan("shared")
    train(long)
    train_until(short, 4)
    assert short.read().iteration == 4
    train(short)
    assert [resume.iteration for resume in short.read().resumes] == [4]
    assert_same(short, trained_alone("short"))


@pytest.mark.parametrize("kept", [True, False])
def test_a_longer_schedule_goes_on_from_a_finished_run(plan, assert_same, trained_alone, kept):
    """From its first rate drop; without that checkpoint, from what there is before it."""
    (short,) = plan("grown", schedules=SCHEDULES[:1])
    train(short)
    assert iterations_kept(short) == [3, 4, 5]
    if not kept:
        (short.checkpoints / "0000003.pth").rename(short.checkpoints / "0000002.pth")
    _, long = plan("grown")
    assert long.read().branch.of == "short"
    assert long.read().branch.at == 3
    if kept:
        train(long)
        assert long.read().branch.taken.iteration == 3
        assert_same(long, trained_alone("long"))
    else:
        assert checkpoint.find_origin(long) == (short, 2)


def test_longer_schedules_share_their_way_beyond_a_finished_run(plan, assert_same, trained_alone):
    (short,) = plan("grown", schedules=SCHEDULES[:1])
    train(short)
    longest = {"iterations": 9, "name": "longest", "drops_before_end": [2, 1]}
    _, long, end = plan("grown", schedules=[*SCHEDULES, longest])
    assert (end.read().branch.of, end.read().branch.at) == ("short", 3)
    assert (long.read().branch.of, long.read().branch.at) == ("longest", 6)
    assert not checkpoint.is_ready(long)
    train(end, long)
    assert long.read().branch.taken.iteration == 6
    assert_same(long, trained_alone("long"))


def test_nothing_is_taken_while_the_trunk_is_not_there(plan):
    short, long = plan("shared")
    assert not checkpoint.take(short)
    assert checkpoint.is_ready(long)
    assert not short.checkpoints.exists()
