"""One run in several processes over gloo.

Most processes are forks of this one, which has paid for the imports; one test starts real ones.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scratch_vs_pretrain.data.shapes import ShapesSpec, make_shapes
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.spec import load_study
from scratch_vs_pretrain.training import __main__ as worker
from scratch_vs_pretrain.training import distributed

TRAINING = [sys.executable, "-m", "scratch_vs_pretrain.training"]


@pytest.fixture
def plan_run(write_study, tmp_path):
    def plan(output, iterations=6, name="tiny", **fields) -> RunFolder:
        file = write_study(schedules=[{"iterations": iterations, "name": "short"}], **fields)
        return prepare(replace(load_study(file), name=name), tmp_path / output)[0]

    return plan


@pytest.fixture
def train(ranks, ended):
    """Trains a run in forks; returns their exit codes."""

    def start(folder, count=2, before=lambda: None):
        def rank():
            before()
            return worker.main([str(folder.path)])

        return ended(*ranks(rank, count))

    return start


def send_me(number, rank=0):
    if os.environ["RANK"] == str(rank):
        os.kill(os.getpid(), number)


def test_killed_and_stopped_runs_of_two_end_as_one_left_alone(
    at_iteration, plan_run, train, content_of_run, assert_equal
):
    """One asked to stop is enough for both; then both are killed; then they finish."""
    fields = {"overrides": {"MODEL.RESNETS.NORM": "SyncBN", "SVP.LOG_PERIOD": 1}}
    alone, stopped = (plan_run(name, 7, **fields) for name in ("alone", "stopped"))
    assert train(alone) == [0, 0]
    terminated = lambda: at_iteration(1, lambda: send_me(signal.SIGTERM, rank=1))  # noqa: E731
    assert train(stopped, before=terminated) == [worker.INTERRUPTED] * 2
    assert stopped.read().state == "interrupted"
    assert stopped.read().iteration == 3  # asked in the second, agreed on in the third
    killed = lambda: at_iteration(5, lambda: os.kill(os.getpid(), signal.SIGKILL))  # noqa: E731
    assert train(stopped, before=killed) == [-signal.SIGKILL] * 2
    assert stopped.state() == "interrupted"
    assert train(stopped) == [0, 0]
    resumes = [(resume.iteration, resume.exact) for resume in stopped.read().resumes]
    assert resumes == [(3, True), (5, True)]  # 5: the checkpoint of the first rate drop
    assert_equal(content_of_run(stopped), content_of_run(alone))
    assert [row["iteration"] for row in content_of_run(stopped)["metrics"]] == list(range(7))
    assert len(content_of_run(alone)["checkpoint"]["random"]) == 2
    assert any("NaiveSyncBatchNorm" in name for name in alone.read().norms)


def test_a_killed_run_of_three_ends_as_one_left_alone(
    at_iteration, plan_run, train, content_of_run, assert_equal
):
    """The order in which three add their gradients is the same after a resume."""
    fields = {"overrides": {"SOLVER.IMS_PER_BATCH": 3, "SVP.GROUP_SIZE": 1}}
    alone, killed = (plan_run(name, 5, **fields) for name in ("alone", "killed"))
    assert train(alone, 3) == [0, 0, 0]
    die = lambda: at_iteration(3, lambda: os.kill(os.getpid(), signal.SIGKILL))  # noqa: E731
    assert train(killed, 3, before=die) == [-signal.SIGKILL] * 3
    assert train(killed, 3) == [0, 0, 0]
    assert_equal(content_of_run(killed), content_of_run(alone))


def test_two_learn_as_one_does(plan_run, train, content_of_run, tmp_path):
    """The same total batch gives the same losses, up to the order of sums.

    A detector in which the two ways are the same in exact arithmetic: nothing is drawn (all
    anchors and proposals are used), and each image has as many of them as the next, so that the
    mean of the means over the processes is the mean over all. Masks are left out, whose mean is
    over the foreground of one process in Detectron2.

    Float32 rounds by 6e-8 of a value, so that sums in another order differ by about that in the
    first loss. The weights carry it on, and training amplifies it: about tenfold in five iterations
    here, to 2e-6 after twelve (and 4e-4 after twenty). The tolerances are ten times what was seen.
    """
    data = tmp_path / "pairs"
    spec = ShapesSpec(train=12, test=4, image_size=64, object_size=(16, 40), objects=(2, 2))
    make_shapes(data, spec, progress=False)
    fields = {
        "data": {
            part: {"annotations": f"{data}/annotations/{part}.json", "images": f"{data}/{part}"}
            for part in ("train", "test")
        },
        "overrides": {
            "SOLVER.IMS_PER_BATCH": 4,
            "SOLVER.BASE_LR": 0.002,
            "MODEL.MASK_ON": False,
            "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100_000,
            "MODEL.RPN.POSITIVE_FRACTION": 1.0,
            "MODEL.RPN.NMS_THRESH": 1.0,
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 100,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 1000,
            "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
        },
    }
    curves = []
    for count in (1, 2):
        # Forks inherit the sets that other tests registered under the usual study's name.
        folder = plan_run(f"of {count}", 12, name="pairs", **fields)
        assert train(folder, count) == [0] * count
        # Not smoothed, as metrics.json has them.
        recent = content_of_run(folder)["checkpoint"]["recent"]["total_loss"]
        curves.append([loss for loss, _ in recent])
        assert folder.read().samples.images == 48
    one, two = curves
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    assert two == pytest.approx(one, rel=2e-5)
    assert one[-1] < one[0]


def test_a_failure_of_one_is_named(at_iteration, plan_run, train):
    def fail():
        if os.environ["RANK"] == "1":
            raise RuntimeError("this one alone")

    folder = plan_run("run")
    codes = train(folder, before=lambda: at_iteration(3, fail))
    assert codes == [worker.FAILED] * 2
    assert folder.read().state == "failed"
    assert folder.read().reason == "process 1 of 2: RuntimeError: this one alone"
    assert train(folder) == [0, 0]


def test_another_number_of_processes_goes_on(at_iteration, plan_run, train):
    folder = plan_run("run")
    stop = lambda: at_iteration(3, lambda: os.kill(os.getpid(), signal.SIGTERM))  # noqa: E731
    assert train(folder, 2, before=stop) == [worker.INTERRUPTED] * 2
    assert train(folder, 1) == [0]
    assert folder.read().samples.images == 12
    (resume,) = folder.read().resumes
    assert not resume.exact
    assert list(resume.inexact_because) == ["processes was 2 before and is 1 now"]


def test_a_batch_that_does_not_divide_is_refused(plan_run, train):
    folder = plan_run("run")
    assert train(folder, 3) == [worker.FAILED] * 3
    assert "does not divide over 3 processes" in folder.read().reason


def test_a_run_that_another_holds_is_left_alone(plan_run, train):
    folder = plan_run("run")
    with folder.lock():
        assert train(folder) == [worker.BUSY] * 2
    assert folder.state() == "planned"


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def process_of_rank(starter, rank):
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if (
                f"RANK={rank}".encode() in variables
                and f"SVP_PARENT={starter}".encode() in variables
            ):
                return int(entry.name)
    return None


def test_real_processes(plan_run, new_python, tmp_path):
    """One is killed: the run has failed, and why; asked to stop, all stop; then it finishes."""
    folder = plan_run("run", 200)
    run = ["-m", "scratch_vs_pretrain.training", folder.path, "--processes", "2"]
    with (tmp_path / "errors").open("w") as file:
        starter = new_python(run, err=file)
    wait_for(lambda: len(list(folder.checkpoints.glob("0*.pth"))) == 2)
    os.kill(process_of_rank(starter.pid, 1), signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: starter.poll() is not None, 120)
    errors = (tmp_path / "errors").read_text()
    assert starter.returncode == worker.FAILED
    assert time.monotonic() - killed < distributed.END_SECONDS
    assert folder.read().state == "failed"
    assert "process 1 of 2 was killed by SIGKILL" in folder.read().reason
    assert "process 1 of 2 was killed by SIGKILL" in errors
    assert not folder.is_locked()


@pytest.fixture
def as_forks(monkeypatch, process_fork):
    """Lets a function of run folder and environment take the place of training processes."""

    def called(main, folder, told):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ |= told
        return main(folder)

    def replace(main):
        def start(folder, options, told):
            return process_fork(called, main, folder, told)

        monkeypatch.setattr(distributed, "start_training", start)

    return replace


def test_processes_stop_when_asked_and_when_alone(plan_run, as_forks, fork, ended):
    """The request is passed on; and they stop when the process that started them is killed."""
    folder = plan_run("run", 1000)
    as_forks(lambda folder: worker.main([str(folder.path)]))
    starter = fork(distributed.train_in_processes, folder, 2, False)
    wait_for(lambda: list(folder.checkpoints.glob("0*.pth")))
    os.kill(starter, signal.SIGTERM)
    assert ended(starter) == [worker.INTERRUPTED]
    assert folder.read().state == "interrupted"
    starter = fork(distributed.train_in_processes, folder, 2, False)
    wait_for(lambda: folder.read().resumes)
    time.sleep(1)
    os.kill(starter, signal.SIGKILL)
    assert ended(starter) == [-signal.SIGKILL]
    wait_for(lambda: not folder.is_locked())
    assert folder.read().state == "interrupted"
    assert "asked to stop after" in folder.read().reason


def test_a_request_before_training_begins(plan_run, as_forks, fork, ended):
    folder = plan_run("run")

    def slow(folder):
        (folder.path / f"starting{os.environ['RANK']}").touch()
        time.sleep(60)

    as_forks(slow)
    folder.update(state="running")
    starter = fork(distributed.train_in_processes, folder, 2, False)
    wait_for(lambda: len(list(folder.path.glob("starting*"))) == 2)
    os.kill(starter, signal.SIGTERM)
    assert ended(starter) == [worker.INTERRUPTED]
    assert folder.read().reason == "asked to stop before training began"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_killed_run_on_a_gpu_ends_as_one_left_alone(plan_run, content_of_run, assert_equal):
    """With deterministic kernels; real processes, because a fork cannot use CUDA."""
    fields = {"overrides": {"MODEL.DEVICE": "cuda", "SVP.DETERMINISTIC": True}}
    alone, killed = (plan_run(name, 40, **fields) for name in ("alone", "killed"))
    subprocess.run([*TRAINING, str(alone.path)], check=True)
    training = subprocess.Popen([*TRAINING, str(killed.path)])
    wait_for(lambda: list(killed.checkpoints.glob("0*.pth")))
    training.kill()
    training.wait()
    assert killed.state() == "interrupted"
    subprocess.run([*TRAINING, str(killed.path)], check=True)
    assert killed.read().resumes[0].exact
    assert_equal(content_of_run(killed), content_of_run(alone))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_one_run(plan_run):
    folder = plan_run("run", overrides={"MODEL.DEVICE": "cuda"})
    subprocess.run([*TRAINING, str(folder.path), "--processes", "2"], check=True, timeout=300)
    assert folder.read().state == "finished"
    assert folder.read().provenance.processes == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_more_processes_than_gpus_are_refused(plan_run):
    folder = plan_run("run", overrides={"MODEL.DEVICE": "cuda"})
    count = torch.cuda.device_count() + 1
    run = [*TRAINING, str(folder.path), "--processes", str(count)]
    done = subprocess.run(run, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode != 0
    assert "start fewer processes" in done.stderr
