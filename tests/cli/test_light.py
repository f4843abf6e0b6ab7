"""What plans and bad study files cost: no torch, and so no seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BASELINE = "configs/studies/paper/baseline_r50_gn.yaml"
CODE = """
import sys, time
from scratch_vs_pretrain.cli import main
status = main(sys.argv[1:])
heavy = {"torch", "torchvision", "detectron2"} & sys.modules.keys()
print(status, sorted(heavy), time.process_time())
"""


def run(*arguments):
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    status, _, rest = done.stdout.splitlines()[-1].partition(" ")
    modules, _, seconds = rest.rpartition(" ")
    return int(status), modules, float(seconds), done.stderr


@pytest.mark.parametrize("command", ["plan", "budget"])
def test_planning_imports_no_torch(command):
    status, modules, _, _ = run(command, BASELINE)
    assert (status, modules) == (0, "[]")


def test_a_plan_takes_a_second_of_processor_time():
    # The best of three: other tests use the processor too.
    assert min(run("plan", BASELINE)[2] for _ in range(3)) < 1.0


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("content", ["name: [", "name: tiny\n"])
def test_a_bad_study_file_imports_no_torch(tmp_path, command, content):
    file = tmp_path / "study.yaml"
    file.write_text(content)
    status, modules, _, said = run(command, file)
    assert (status, modules) == (2, "[]")
    assert str(file) in said


def test_status_imports_no_torch():
    status, modules, _, _ = run("status", "notebooks/data/demo")
    assert (status, modules) == (0, "[]")
