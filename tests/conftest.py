"""Every test may import Detectron2, and computes on one thread so that it is repeatable."""

import contextlib
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

# Of this process and of those that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
import yaml

import scratch_vs_pretrain  # noqa: F401  (with it, Detectron2 imports)

torch.set_num_threads(1)


def pytest_configure(config):
    """Lets pytest-xdist hand out files as they come. It begins with those of the most tests, and
    would end with one process waiting for the longest test of all, which has a file to itself."""
    config.option.loadscopereorder = False


WALL_CLOCK = ("time", "data_time", "eta_seconds", "rank_data_time")

DEMO_CONFIG = Path(__file__).parents[1] / "configs/demo_mask_rcnn_R_18_FPN_gn.yaml"


@pytest.fixture
def load_backbone():
    """Returns what fills a model's bottom-up network with a checkpoint's tensors and reports."""
    from scratch_vs_pretrain.modeling.backbone import pretrained_part
    from scratch_vs_pretrain.modeling.initial import match_backbone

    def load(model, state, *arguments, **options):
        report, tensors = match_backbone(model, state, *arguments, **options)
        pretrained_part(model).load_state_dict(tensors, strict=False)
        return report

    return load


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory):
    """A folder with a `shapes` set of 12 training and 4 test images of 64 pixels."""
    from scratch_vs_pretrain.data.shapes import ShapesSpec, make_shapes

    folder = tmp_path_factory.mktemp("data") / "shapes"
    spec = ShapesSpec(train=12, test=4, image_size=64, object_size=(16, 40), objects=(1, 3))
    make_shapes(folder, spec, progress=False)
    return folder


@pytest.fixture
def write_study(tiny_shapes, tmp_path):
    """Writes a study that trains in seconds.

    Keyword arguments replace its top-level fields; None leaves one out.
    """

    def write(name="tiny.yaml", **fields):
        overrides = {
            "INPUT.MIN_SIZE_TRAIN": [64],
            "INPUT.MIN_SIZE_TEST": 64,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.WARMUP_ITERS": 2,
            "SOLVER.CHECKPOINT_PERIOD": 2,
            "SVP.LOG_PERIOD": 2,
            "SVP.TENSORBOARD": False,
            "MODEL.FPN.OUT_CHANNELS": 32,
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 4,
            "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
            "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 7,
            "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
            "TEST.DETECTIONS_PER_IMAGE": 10,
            **fields.pop("overrides", {}),
        }
        study = {
            "name": "tiny",
            "base": str(DEMO_CONFIG),
            "arms": {"scratch": {"init": "scratch"}},
            "schedules": [{"iterations": 6, "name": "short"}],
            "overrides": overrides,
            "data": {
                part: {
                    "annotations": str(tiny_shapes / f"annotations/{part}.json"),
                    "images": str(tiny_shapes / part),
                }
                for part in ("train", "test")
            },
            **fields,
        }
        study = {key: value for key, value in study.items() if value is not None}
        path = tmp_path / name
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        return path

    return write


# What a process of its own imports anew: all that keeps what was registered or read on import.
ANEW = ("detectron2", "fvcore", "iopath", "scratch_vs_pretrain", "tiny_detector")


class Fork:
    """A fork of this process that ends with what `main` returns, handled as subprocess.Popen."""

    def __init__(self, main, *arguments):
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                os.setsid()
                status = main(*arguments)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)

    def poll(self):
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class NewPython(Fork):
    """``python -c CODE`` or ``python -m MODULE``, with what it is told by its environment.

    It is as a new process but for torch, whose import takes seconds and is not repeated: a fork of
    this one, which imports this package and Detectron2 anew.
    """

    def __init__(self, arguments, told=(), cwd=None, out=None, err=None):
        super().__init__(self._main, list(map(str, arguments)), dict(told), cwd, out, err)

    @staticmethod
    def _main(arguments, told, cwd, out, err):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for number, file in enumerate((out, err), 1):
            if file is not None:
                os.dup2(file.fileno(), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, 1, closefd=False) for number, mode in enumerate("rww")
        )
        os.environ |= told
        os.chdir(cwd or ".")
        for name in list(sys.modules):
            if name.partition(".")[0] in ANEW:
                del sys.modules[name]
        for name in ("", *logging.root.manager.loggerDict):
            logging.getLogger(name).handlers.clear()
        option, code, *sys.argv[1:] = arguments
        try:
            if option == "-m":
                runpy.run_module(code, run_name="__main__", alter_sys=True)
            else:
                exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
        return 0


@pytest.fixture
def process_fork():
    """The class :class:`Fork`; what it starts is the test's to end."""
    return Fork


@pytest.fixture
def new_python():
    """Starts a :class:`NewPython`, which is killed at the end of the test."""
    started = []

    def start(*arguments, **options):
        started.append(NewPython(*arguments, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def run_python(tmp_path):
    """Runs ``python -c CODE`` or ``python -m MODULE`` beside the test's files, as subprocess.run;
    Detectron2 reads DETECTRON2_DATASETS when it is imported."""

    def run(*arguments, **told):
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            code = NewPython(arguments, told, tmp_path, out, err).wait()
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess(arguments, code, out.read(), err.read())

    return run


@pytest.fixture
def run_code(run_python, tmp_path):
    """Runs Python code in a process of its own with its own data sets."""

    def run(code, *arguments, datasets=tmp_path):
        cache = str(tmp_path / "cache")
        return run_python(
            "-c", code, *arguments, DETECTRON2_DATASETS=str(datasets), SVP_CACHE=cache
        )

    return run


@pytest.fixture
def quick_starts(monkeypatch):
    """Trainings that this process starts, by `svp run` or otherwise, import no torch anew.

    Real ones are those of test_killed_studies, test_slurm, test_processes and test_launch.
    """
    from scratch_vs_pretrain.study import launch

    def start(folder, options, told):
        return NewPython(["-m", "scratch_vs_pretrain.training", folder.path, *options], told)

    monkeypatch.setattr(launch, "start_training", start)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory):
    """Weights that fill the backbone of :func:`write_study`'s studies."""
    from scratch_vs_pretrain.config import load_config
    from scratch_vs_pretrain.modeling.backbone import build_bottom_up
    from scratch_vs_pretrain.modeling.checkpoint_file import write_backbone

    path = tmp_path_factory.mktemp("weights") / "backbone.pth"
    torch.manual_seed(7)
    write_backbone(path, build_bottom_up(load_config(DEMO_CONFIG)).state_dict(), {})
    return path


@pytest.fixture
def fork(tmp_path):
    """Calls a function in a fork of this process, which has paid for the imports.

    It returns the process id. The function's result is the exit status; what it prints goes to
    ``tmp_path/forks.log``.
    """
    children = []

    def start(function, *arguments, **environment):
        child = os.fork()
        if child:
            children.append(child)
            return child
        status = 70
        try:
            os.environ |= environment
            log = os.open(tmp_path / "forks.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            status = function(*arguments) or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    yield start
    for child in children:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.fixture
def ranks(fork):
    """Calls a function in several processes of one group; returns their process ids."""

    def start(function, count=2):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [
            fork(function, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(count)
        ]

    return start


@pytest.fixture
def ended():
    """Waits for processes; returns their exit codes, negative for signals."""

    def wait(*children):
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    return wait


@pytest.fixture
def content_of_run():
    """Reads all that two equal runs have in common, from a finished run's folder."""

    def read(folder):
        from scratch_vs_pretrain.training.checkpoint import load_newest

        checkpoint = load_newest(folder)
        recent = checkpoint.pop("recent")
        recent = {name: values for name, values in recent.items() if name not in WALL_CLOCK}
        rows = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
        evaluations = [
            json.loads(file.read_text()) for file in sorted(folder.evaluations.iterdir())
        ]
        timed = ("seconds",)
        return {
            "checkpoint": {**without(checkpoint, timed), "recent": recent},
            "metrics": [without(row, WALL_CLOCK) for row in rows],
            "evaluations": [without(evaluation, timed) for evaluation in evaluations],
        }

    def without(content, names):
        return {name: value for name, value in content.items() if name not in names}

    return read


@pytest.fixture
def assert_equal():
    """Compares nested containers of numbers, texts and tensors bit for bit."""

    def compare(one, other, where=""):
        assert type(one) is type(other), where
        if isinstance(one, dict):
            assert one.keys() == other.keys(), where
            for key in one:
                compare(one[key], other[key], f"{where}.{key}")
        elif isinstance(one, (list, tuple)):
            assert len(one) == len(other), where
            for position, pair in enumerate(zip(one, other, strict=True)):
                compare(*pair, f"{where}[{position}]")
        elif isinstance(one, torch.Tensor):
            assert torch.equal(one, other), where
        else:
            assert one == other or (one != one and other != other), where

    return compare
