import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.tables import runs as live
from scratch_vs_pretrain.analysis.tables.runs import score_so_far, seconds_left, status_text, watch
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder

TRAINING = {"state": "running", "iteration": 200, "seconds": 100.0}


def test_every_run_has_a_line(folders):
    folders.run(curve={100: 4.0, 200: 12.3}, **{**TRAINING, "state": "interrupted"})
    folders.run("pretrained", state="failed", reason="the disk is full", curve={})
    lines = status_text(folders.root).strip().splitlines()
    assert [line.split()[:3] for line in lines[-2:]] == [
        ["scratch", "600it", "0"],
        ["pretrained", "600it", "0"],
    ]
    assert "interrupted  200 / 600" in lines[-2]
    assert "12.3" in lines[-2]
    assert lines[-1].endswith("the disk is full")


def test_several_studies_are_told_apart(folders):
    folders.run()
    folders.run(study="other")
    lines = status_text(folders.root).strip().splitlines()
    assert [line.split()[:2] for line in lines[-2:]] == [["demo", "scratch"], ["other", "scratch"]]


def test_a_running_run_goes_on_at_its_rate(folders):
    folder = RunFolder(folders.run(**TRAINING))
    assert seconds_left(load_runs(folders.root)[0]) is None  # nobody holds it
    with folder.lock():
        (run,) = load_runs(folders.root)
        assert seconds_left(run) == pytest.approx(400 * 100 / 200)
        assert "0:03:20" in status_text(folders.root)


def test_what_a_branch_has_from_its_trunk_took_no_time_of_its_own(folders):
    branch = {"of": "900it", "at": 150, "taken": {"iteration": 150, "seconds": 60.0}}
    folder = RunFolder(folders.run(branch=branch, **TRAINING))
    with folder.lock():
        (run,) = load_runs(folders.root)
        assert seconds_left(run) == pytest.approx(400 * 40 / 50)


def test_nothing_is_known_before_the_first_iteration(folders):
    folder = RunFolder(folders.run(curve={}, **{**TRAINING, "iteration": 0, "seconds": 0.0}))
    with folder.lock():
        (run,) = load_runs(folders.root)
        assert seconds_left(run) is None
    assert score_so_far(run) is None


def test_a_branch_that_waits_says_for_what(folders):
    folders.run(state="planned", branch={"of": "900it", "at": 150, "taken": None}, iteration=0)
    assert "begins at iteration 150 of 900it" in status_text(folders.root)


def test_watching_without_a_terminal_prints_once(folders, capsys):
    folders.run(**TRAINING)
    watch(folders.root)
    assert capsys.readouterr().out.count("interrupted") == 1


def test_watching_ends_with_the_last_run(folders, monkeypatch, capsys):
    folder = RunFolder(folders.run(state="planned", iteration=0))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(live.time, "sleep", lambda _: folder.update(state="finished"))
    watch(folders.root, seconds=0)
    assert "finished" in capsys.readouterr().out


def test_a_file_that_is_being_replaced_leaves_the_table_as_it_is(capsys):
    def fails():
        raise UserError("run.json: no such file")

    with live.live_table(fails) as show:
        show()
    assert "no such file" not in capsys.readouterr().out
