"""The proof of exact resuming from outside: `svp run`, killed with SIGKILL wherever it is.

At seeded moments dies the launcher alone (its runs go on, the next launcher waits for them), one
training process, or all at once, as when the power fails. Every run ends as one left alone does.
"""

import random
import subprocess
import sys
import time

import psutil
import pytest

from scratch_vs_pretrain import cli
from scratch_vs_pretrain.run_folder import RunFolder

# Of the study that is left alone.
pytestmark = pytest.mark.usefixtures("quick_starts")

TARGETS = ("launcher", "worker", "all")
PATIENCE = 900
LONGER = 2  # for each kill

# Overrides, schedules and options of each kind of study.
PLAIN = {"MODEL.MASK_ON": False}
ONE = [{"iterations": 40, "name": "short"}]
# The longer one is the trunk of the shorter.
TWO = [
    {"iterations": 24, "name": "short", "drops_before_end": [8]},
    {"iterations": 32, "name": "long", "drops_before_end": [8]},
]
STUDIES = {
    "plain": (PLAIN, ONE, ()),
    "masks": ({}, ONE, ()),
    "branches": (PLAIN, TWO, ()),
    "two-processes": (PLAIN, ONE, ("--gpus", "0,1", "--gpus-per-run", "2")),
}


class Launchers:
    """`svp run` of one study, one at a time, and whatever it has started."""

    def __init__(self, study, output, options):
        command = [sys.executable, "-m", "scratch_vs_pretrain.cli", "run", str(study)]
        self.command = [*command, "-o", str(output), *options]
        self.output = output
        self.log = output.parent / f"{output.name}.log"
        self.launcher = None

    def ensure(self):
        if self.launcher is None or self.launcher.poll() is not None:
            with self.log.open("a") as log:
                self.launcher = subprocess.Popen(
                    self.command, stdout=log, stderr=log, start_new_session=True
                )

    def alive(self):
        """The processes of this study, by what they are."""
        found = {"launcher": [], "worker": []}
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if process.info["status"] == psutil.STATUS_ZOMBIE:
                continue
            if any(word.startswith(str(self.output)) for word in words):
                kind = "worker" if "scratch_vs_pretrain.training" in words else "launcher"
                found[kind].append(process)
        return {**found, "all": [*found["launcher"], *found["worker"]]}

    def kill(self, target, draw):
        processes = self.alive()[target]
        if target == "worker" and processes:
            processes = [draw.choice(processes)]
        for process in processes:
            process.kill()
        return bool(processes)

    def finish(self):
        end = time.monotonic() + PATIENCE
        for _ in range(4):
            self.ensure()
            if self.launcher.wait(timeout=end - time.monotonic()) == 0:
                return
        raise AssertionError(self.log.read_text()[-3000:])

    def lines(self):
        """How many lines of metrics there are, in all runs."""
        return sum(file.read_bytes().count(b"\n") for file in self.output.rglob("metrics.json"))


@pytest.fixture
def launchers():
    made = []

    def make(*arguments):
        made.append(Launchers(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.kill("all", None)


def kill_again_and_again(study, kills, seed):
    """Kills a study's processes at seeded moments; returns what was killed."""
    draw = random.Random(seed)
    killed = []
    while len(killed) < kills:
        study.ensure()
        target = TARGETS[len(killed) % len(TARGETS)]
        # After some iterations, or while processes start.
        seen, more = study.lines(), draw.choice([0, 1, 2, 3])
        end = time.monotonic() + PATIENCE
        while study.lines() < seen + more and study.launcher.poll() is None:
            assert time.monotonic() < end, study.log.read_text()[-3000:]
            time.sleep(0.02)
        assert study.launcher.poll() != 0, "all runs have ended before the last kill: train longer"
        time.sleep(draw.random() * (0.5 if more else 5))
        if study.kill(target, draw):
            killed.append(target)
        if target != "worker":
            study.launcher.wait()
    return killed


def prove(name, kills, seed, write_study, tmp_path, launchers, content_of_run, assert_equal):
    overrides, schedules, options = STUDIES[name]
    # A run goes on while the next launcher starts, and is not to end before the last kill.
    times = LONGER * kills
    schedules = [
        {
            "name": one["name"],
            "iterations": times * one["iterations"],
            "drops_before_end": [times * drop for drop in one.get("drops_before_end", [])],
        }
        for one in schedules
    ]
    file = write_study(
        schedules=schedules,
        evaluation={"period": 8 * times},
        overrides={"SVP.LOG_PERIOD": 1, "SOLVER.CHECKPOINT_PERIOD": 4, **overrides},
    )
    assert cli.main(["run", str(file), "-o", str(tmp_path / "alone"), *options]) == 0
    study = launchers(file, tmp_path / "killed", options)
    killed = kill_again_and_again(study, kills, seed)
    study.finish()
    runs = sorted(file.parent for file in (tmp_path / "alone").rglob("run.json"))
    assert len(runs) == len(schedules)
    resumes = 0
    for run in runs:
        same = RunFolder(tmp_path / "killed" / run.relative_to(tmp_path / "alone"))
        assert_equal(content_of_run(same), content_of_run(RunFolder(run)))
        record = same.read()
        assert record.state == "finished"
        assert all(resume.exact for resume in record.resumes)
        resumes += len(record.resumes)
    assert resumes > 0
    print(f"{name}: {len(killed)} kills ({', '.join(killed)}), {resumes} resumes, all equal")


def test_a_study_killed_three_times(write_study, tmp_path, launchers, content_of_run, assert_equal):
    prove("branches", 3, 1, write_study, tmp_path, launchers, content_of_run, assert_equal)


@pytest.mark.slow  # minutes each
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_killed_a_dozen_times(
    name, write_study, tmp_path, launchers, content_of_run, assert_equal
):
    seed = list(STUDIES).index(name)
    prove(name, 12, seed, write_study, tmp_path, launchers, content_of_run, assert_equal)
