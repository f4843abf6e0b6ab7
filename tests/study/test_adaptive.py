"""Which runs an answer still needs; trainings are pretended, with AP that is drawn."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain.analysis.stats.contrast import (
    Contrast,
    Curves,
    Lack,
    judge_contrast,
)
from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import find_run_folders, write_json
from scratch_vs_pretrain.run_info import Init, RunInfo
from scratch_vs_pretrain.study.adaptive import (
    Adaptive,
    Limits,
    Stage,
    next_stage,
    part_of,
    seeds_at_looks,
)
from scratch_vs_pretrain.study.spec import load_study

LIMITS = Limits((3, 4, 6, 9, 10), 3)


class TestNextStage:
    @pytest.mark.parametrize(
        ("stage", "undecided", "expected"),
        [
            (Stage(1, 3), [], None),
            (Stage(1, 3), [Lack("early", 5), Lack("end", 0, longer=True)], Stage(1, 4)),
            (Stage(1, 4), [Lack("end", 0, longer=True)], Stage(2, 4)),
            # What only the end lacks in seeds comes after the length that it lacks.
            (Stage(1, 4), [Lack("end", 5), Lack("end", 0, longer=True)], Stage(2, 4)),
            (Stage(2, 4), [Lack("end", 7)], Stage(2, 6)),
            # After the first look, what no 10 seeds decide is given up.
            (Stage(1, 3), [Lack("at", 50)], Stage(1, 4)),
            (Stage(2, 6), [Lack("at", 10)], Stage(2, 9)),
            (Stage(2, 6), [Lack("at", 11)], None),
            # So is a gain that they would not tell from none.
            (Stage(2, 6), [Lack("end", 11, longer=True)], None),
            (Stage(1, 4), [Lack("at", 50), Lack("end", 0, longer=True)], Stage(2, 4)),
            (Stage(2, 4), [Lack("at", 50)], None),
            (Stage(3, 6), [Lack("end", 0, longer=True)], None),
            (Stage(3, 10), [Lack("end", 11)], None),
        ],
    )
    def test_seeds_then_length_then_nothing(self, stage, undecided, expected):
        assert next_stage(stage, LIMITS, undecided)[0] == expected

    @given(
        st.lists(
            st.lists(
                st.builds(
                    Lack,
                    st.sampled_from(["early", "at", "end"]),
                    st.floats(0, 100),
                    st.booleans(),
                ),
                max_size=3,
            ),
            min_size=20,
            max_size=20,
        )
    )
    def test_a_path_ends_within_its_looks(self, answers):
        stage, looks = Stage(1, 3), 0
        for undecided in answers:
            looks += 1
            following, _ = next_stage(stage, LIMITS, undecided)
            if following is None:
                break
            grown = following.seeds - stage.seeds, following.schedules - stage.schedules
            assert min(grown) == 0 < max(grown)
            stage = following
        assert looks <= LIMITS.looks


@given(st.integers(1, 30), st.integers(0, 40))
def test_seeds_grow_to_the_most(least, more):
    found = seeds_at_looks(least, least + more)
    assert found[0] == least
    assert found[-1] == least + more
    assert list(found) == sorted(set(found))


def test_seeds_that_cannot_show_the_end_of_training_are_not_trained():
    """Scratch gains less than the margin from half the training, and too little less to show it."""
    at, noise = np.array([10, 20]), np.array([[-0.4], [0.0], [0.4], [0.0]])
    short, long = (np.tile([20.0, end], (4, 1)) for end in (38.0, 38.45))
    ours = [Curves(f"{n}it", n, (0, 1, 2, 3), at * n // 20, values, (n * 2 // 3,))
            for n, values in ((20, short), (40, long + noise))]  # fmt: skip
    theirs = [dataclasses.replace(c, values=np.full((4, 2), 45.0)) for c in ours]
    contrast = Contrast(tuple(ours), tuple(theirs))
    (end,) = judge_contrast(contrast, 0.03).lacks
    assert (end.claim, end.longer) == ("end", False)
    assert end.seeds > 50


@pytest.fixture
def study(write_study, tiny_backbone):
    def make(**fields):
        arms = {"scratch": {"init": "scratch"}, "pretrained": {"init": str(tiny_backbone)}}
        lengths = [{"iterations": n, "name": f"{n}it"} for n in (40, 10, 20)]
        answer = {"margin": 0.5, "seeds": {"least": 3, "most": 8}}
        fields = {"arms": arms, "schedules": lengths, "answer": answer, **fields}
        return load_study(write_study(**fields))

    return make


class Pretended:
    """Trains nothing: writes what the runs would have scored, and records what was asked for."""

    def __init__(self, output, lead, sd=0.1):
        self.output, self.lead, self.sd, self.asked, self.parts = output, lead, sd, [], []

    def __call__(self, part):
        self.parts += part.by_size()
        self.asked.append((len(part.arms[0].schedules), len(part.seeds)))
        outcomes = []
        for run in part.runs():
            folder = run.folder(self.output)
            outcomes.append(SimpleNamespace(folder=folder, state="finished"))
            if folder.run_file.exists():
                continue
            folder.evaluations.mkdir(parents=True)
            length = run.schedule.iterations
            init = Init(name="checkpoint" if run.arm.weights else "scratch")
            about = {"study": part.name, "arm": run.arm.name, "schedule": run.schedule.name}
            done = {"iterations": length, "iteration": length, "steps": (length * 2 // 3,)}
            size = int(run.size) if run.size else None
            info = RunInfo(
                **about,
                **done,
                size=size,
                seed=run.seed,
                state="finished",
                init=init,
                seconds=36.0 * length,
            )
            folder.write(info)
            noise = random.Random(str(run.folder(Path()))).gauss(0, self.sd)
            for at in (length // 4, length // 2, length):
                ap = 30.0 + noise + (self.lead(at) if run.arm.weights else 0.0)
                content = {"iteration": at, "dataset": "val", "tasks": {"bbox": {"AP": ap}}}
                write_json(folder.evaluation_file(at), content)
        return outcomes


def test_a_clear_lead_needs_few_seeds_and_no_longest_schedule(study, tmp_path, capsys):
    train = Pretended(tmp_path, lambda at: 5.0, sd=0.05)
    search = Adaptive(study(), tmp_path, train)
    search.run()
    assert train.asked[0] == (1, 3)
    assert train.asked[-1][0] == 2
    assert train.asked[-1][1] < 8
    text = search.text()
    assert "Does pre-training help?" in text
    assert text.count("yes: +") == 3
    assert text.endswith("% saved")
    looks = json.loads((tmp_path / "tiny/answer.json").read_text())["looks"]
    assert [look["seeds"] for look in looks] == [seeds for _, seeds in train.asked]
    assert looks[-1]["next"] == "every line is answered"
    assert looks[-1]["schedules"] == ["10it", "20it"]
    assert {verdict["verdict"] for verdict in looks[-1]["verdicts"]} == {"yes"}
    assert "look 1 of at most" in capsys.readouterr().err


def test_a_lead_that_training_takes_away_is_followed_to_where_it_has_gone(study, tmp_path):
    train = Pretended(tmp_path, lambda at: 8.0 if at <= 10 else 0.0)
    search = Adaptive(study(), tmp_path, train)
    search.run()
    assert "no: scratch ends no worse" in search.text()


def test_a_folder_in_the_place_of_the_answer_is_refused_first(study, tmp_path):
    train = Pretended(tmp_path, lambda at: 5.0)
    (tmp_path / "tiny/answer.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"answer\.json: is a folder, .*; rename it"):
        Adaptive(study(), tmp_path, train).run()
    assert train.asked == []


def test_a_study_goes_on_where_it_was_left(study, tmp_path):
    whole = Pretended(tmp_path / "whole", lambda at: 5.0)
    Adaptive(study(), tmp_path / "whole", whole).run()
    parted = Pretended(tmp_path / "parts", lambda at: 5.0)

    def stop_early(part):
        outcomes = parted(part)
        outcomes[-1].state = "interrupted"
        return outcomes

    outcomes = Adaptive(study(), tmp_path / "parts", stop_early).run()
    assert outcomes[-1].state == "interrupted"
    parted.asked.clear()
    Adaptive(study(), tmp_path / "parts", parted).run()
    assert parted.asked == whole.asked


def test_sizes_follow_the_largest_first(study, tmp_path):
    train = Pretended(tmp_path, lambda at: 5.0, sd=0.02)
    search = Adaptive(study(sizes=[4, 8]), tmp_path, train)
    search.run()
    looks = json.loads((tmp_path / "tiny/answer.json").read_text())["looks"]
    sizes = [look["size"] for look in looks]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {8, 4}
    assert (tmp_path / "tiny/images-8/scratch/10it/seed0").is_dir()
    assert "4 images" in search.text()


@pytest.mark.parametrize("sizes", [[], [4, 8]])
def test_a_search_for_the_recipe_comes_first(study, tmp_path, sizes):
    train = Pretended(tmp_path, lambda at: 5.0, sd=0.02)
    tune = {"on": "pretrained", "grid": {"SOLVER.GAMMA": [0.1, 0.2]}}
    Adaptive(study(sizes=sizes, tune=tune), tmp_path, train).run()
    searches = len(sizes) or 1
    assert {part.name for part in train.parts[:searches]} == {"tiny-tune"}
    assert {part.tuned_on for part in train.parts[searches:]} == {"pretrained"}
    assert {len(part.overrides.keys() & tune["grid"]) for part in train.parts[searches:]} == {1}


def test_the_budget_is_kept(study, tmp_path, capsys):
    # A run takes 0.01 hours an iteration: three pairs of the shortest schedule are 0.6 hours.
    train = Pretended(tmp_path, lambda at: 0.2, sd=1.0)
    search = Adaptive(study(), tmp_path, train, budget=0.7)
    search.run()
    assert train.asked == [(1, 3)]
    assert search.spent() == pytest.approx(0.6)
    said = capsys.readouterr().err
    assert "over the budget" in said
    assert said.count("this stage trains, whatever the budget") == 1
    assert "undecided" in search.text()


def test_what_was_trained_alone_is_not_taken_off_what_is_left(study, tmp_path):
    """These runs of 10 and 20 iterations share nothing, as started with --no-sharing."""
    train = Pretended(tmp_path, lambda at: 0.2, sd=1.0)
    search, trained = Adaptive(study(), tmp_path, train), part_of(study(), Stage(2, 3))
    folders = [outcome.folder for outcome in train(trained)]
    search._look(folders, Stage(2, 3), 1)
    assert search._hours_left(trained) == 0
    # Two arms' runs of a fourth seed share the 7 iterations before the shorter one's first drop.
    fourth = search._hours_left(part_of(study(), Stage(2, 4)))
    assert fourth == pytest.approx(2 * (20 + 10 - 7) / 100)


def test_the_search_for_the_recipe_is_part_of_the_budget(study, tmp_path, capsys):
    """Two of 10 iterations, 0.2 hours of the 0.7 that three pairs would have kept to alone."""
    train = Pretended(tmp_path, lambda at: 0.2, sd=1.0)
    lengths = [{"iterations": n, "name": f"{n}it"} for n in (10, 40, 20)]
    tune = {"on": "pretrained", "grid": {"SOLVER.GAMMA": [0.1, 0.2]}}
    limited = Adaptive(study(schedules=lengths, tune=tune), tmp_path, train, budget=0.7)
    limited.run()
    assert limited.seen == {}
    said = capsys.readouterr().err
    assert "would bring the hours to 0.8, over the budget" in said
    assert "whatever the budget" not in said
    search = Adaptive(study(schedules=lengths, tune=tune), tmp_path, train, budget=1.0)
    search.run()
    assert search.spent() == pytest.approx(0.8)
    told = json.loads(search.file.read_text())
    assert told["search"] == {"runs": 2, "iterations": 20, "hours": 0.2}
    assert told["looks"][0]["hours"] == pytest.approx(0.8)
    said = "80 iterations, 0.8 hours (of them 20 iterations and 0.2 hours for the search of the"
    assert said in search.text()


def test_a_part_has_the_shortest_schedules_and_the_first_seeds(study):
    part = part_of(study(seeds=[7]), Stage(2, 3))
    assert part.seeds == (7, 0, 1)
    assert [one.name for one in part.arms[0].schedules] == ["10it", "20it"]
    assert dataclasses.replace(part, arms=(), seeds=()) == dataclasses.replace(
        study(seeds=[7]), arms=(), seeds=()
    )


def test_what_compares_nothing_is_refused(study, write_study, tmp_path, capsys):
    alone = load_study(write_study())
    with pytest.raises(UserError, match="--until answered needs an arm from scratch and another"):
        Adaptive(alone, tmp_path, lambda part: [])
    assert main(["run", str(write_study()), "--budget", "3h"]) == 2
    assert "--budget goes with --until answered" in capsys.readouterr().err


@pytest.mark.slow
def test_real_trainings_interrupted_and_resumed(study, tmp_path):
    """Both stop at the limits, as nothing is learnt: three seeds, then the longer schedule."""
    file = study(
        schedules=["4it", "8it"],
        answer={"margin": 20.0, "seeds": {"least": 3, "most": 3}},
        evaluation={"period": 2},
    ).file
    output = tmp_path / "out"
    command = [sys.executable, "-m", "scratch_vs_pretrain.cli", "run", str(file), "-o", str(output)]
    command += ["--until", "answered", "--budget", "2h", "--jobs", "2"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in first.stderr:
        if "look 1 of at most 2: longer training for" in line:
            break
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert first.returncode in (1, 130)  # between two trainings
    folders = find_run_folders(output)
    assert sum(folder.state() == "finished" for folder in folders) < 12
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "54 iterations, " in done.stdout  # 4 and 8 less the 3 that they share, six times
    assert [folder.state() for folder in find_run_folders(output)] == ["finished"] * 12
    looks = json.loads((output / "tiny/answer.json").read_text())["looks"]
    assert [look["schedules"] for look in looks] == [["4it"], ["4it", "8it"]]
    assert looks[-1]["next"] == "no run within the limits is likely to decide early, at, end"
