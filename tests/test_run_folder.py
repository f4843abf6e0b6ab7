import contextlib
import errno
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import (
    DEAD_AFTER_SECONDS,
    RunFolder,
    find_run_folders,
    read_json,
    write_atomically,
    write_json,
)
from scratch_vs_pretrain.run_info import Branch, RunInfo, State

IMPORTS = """
import sys, time
from pathlib import Path
from typing import get_args
from scratch_vs_pretrain.run_folder import RunFolder, write_atomically
from scratch_vs_pretrain.run_info import RunInfo

path = Path(sys.argv[1])
"""
HOLD_LOCK = """
run = RunFolder(path)
with run.lock():
    run.write(RunInfo(study="s", arm="a", schedule="2x", seed=0, iterations=9, state="running"))
    print("ready", flush=True)
    time.sleep(60)
"""
LOOK_AT_LOCK = """
print("ready", flush=True)
while True:
    RunFolder(path).is_locked()
"""
WRITE = """
print("ready", flush=True)
while True:
    for letter in "ab":
        write_atomically(path, letter * 1_000_000)
"""


@contextlib.contextmanager
def other_process(code, path):
    """Runs `code` in another process, which says when it is ready and is killed in the end."""
    command = [sys.executable, "-c", IMPORTS + code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def begin(run, **fields):
    """Writes a run.json."""
    run.path.mkdir(parents=True, exist_ok=True)
    run.write(RunInfo(study="s", arm="a", schedule="2x", seed=0, iterations=9, **fields))


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "study" / "scratch" / "2x" / "seed0")


@pytest.fixture
def owner(run):
    """Another process that trains `run`, as far as its folder can tell."""
    with other_process(HOLD_LOCK, run.path) as process:
        yield process


class TestWriteAtomically:
    @pytest.mark.parametrize("content", ["text\n", "Grüße", "", b"\x00\xff"])
    def test_replaces_the_content(self, tmp_path, content):
        file = tmp_path / "f"
        file.write_text("much longer content than what replaces it")
        write_atomically(file, content)
        assert file.read_bytes() == (content if isinstance(content, bytes) else content.encode())
        assert list(tmp_path.iterdir()) == [file]

    def test_others_may_read_it(self, tmp_path):
        write_atomically(tmp_path / "f", "x")
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644

    @pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
    def test_full_disk_leaves_the_old_file(self, tmp_path, monkeypatch, call):
        file = tmp_path / "f"
        file.write_text("old")

        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(file, "new")
        assert file.read_text() == "old"
        assert list(tmp_path.iterdir()) == [file], "a temporary file was left behind"

    def test_interrupt_leaves_the_old_file(self, tmp_path, monkeypatch):
        file = tmp_path / "f"
        file.write_text("old")

        def interrupt(descriptor):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(file, "new")
        assert [(entry, entry.read_text()) for entry in tmp_path.iterdir()] == [(file, "old")]

    def test_kill_at_any_moment_leaves_a_whole_file(self, tmp_path):
        """A writer is killed many times; what is there is always one of the two contents."""
        file = tmp_path / "f"
        for delay in (0.0, 0.003, 0.01, 0.02, 0.05):
            with other_process(WRITE, file):
                _wait_for(file.exists)
                time.sleep(delay)
            assert file.read_text() in ("a" * 1_000_000, "b" * 1_000_000)


class TestJson:
    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, width=32)
            # JSON has no infinities either.
            .filter(math.isfinite)
            | st.text(),
            lambda children: st.lists(children) | st.dictionaries(st.text(), children),
            max_leaves=10,
        )
    )
    def test_round_trip(self, tmp_path_factory, value):
        file = tmp_path_factory.mktemp("json") / "f.json"
        write_json(file, value)
        assert read_json(file) == value

    @pytest.mark.parametrize("value", [math.nan, math.inf, {"AP": [-math.inf]}])
    def test_refuses_what_is_no_json(self, tmp_path, value):
        file = tmp_path / "f.json"
        file.write_text("1")
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(file, value)
        assert read_json(file) == 1

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "not valid JSON"),
            (b'{"state": "fin', "not valid JSON"),
            (b"\xff\xfe", "not valid JSON"),
            (None, "no such file"),
        ],
    )
    def test_bad_file_is_named(self, tmp_path, content, reason):
        file = tmp_path / "f.json"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=reason) as raised:
            read_json(file)
        assert str(file) in str(raised.value)

    def test_syntax_error_names_the_line(self, tmp_path):
        file = tmp_path / "f.json"
        file.write_text('{\n"a": 1,\n"b": oops\n}')
        with pytest.raises(UserError, match="line 3"):
            read_json(file)

    def test_folder_in_the_files_place(self, tmp_path):
        with pytest.raises(UserError, match="directory"):
            read_json(tmp_path)


WHOLE = {"format": 2, "study": "s", "arm": "a", "schedule": "2x", "seed": 0, "iterations": 9}


class TestRunFile:
    def test_recorded_runs_of_format_1(self):
        """They keep every field, become format 2 when they are written again, and no more."""
        data = Path(__file__).parents[1] / "notebooks" / "data"
        folders = [*find_run_folders(data / "demo"), *find_run_folders(data / "demo_regimes")]
        assert len(folders) == 14
        for folder in folders:
            content = json.loads(folder.run_file.read_text())
            assert content["format"] == 1
            assert json.loads(folder.read().to_json()) == {**content, "format": 2}

    def test_update_merges(self, run):
        begin(run, tuned_on="a")
        whole = run.update(state="running", iteration=7, branch=Branch(of="3x", at=5))
        assert whole == run.read()
        assert (whole.tuned_on, whole.state, whole.iteration) == ("a", "running", 7)
        assert (whole.branch_of, whole.branch_at) == ("3x", 5)

    @pytest.mark.parametrize(
        "changes",
        [{"iterration": 7}, {"iteration": "7"}, {"state": "asleep"}, {"seconds": math.nan}],
    )
    def test_update_checks_names_and_types(self, run, changes):
        begin(run)
        before = run.run_file.read_bytes()
        with pytest.raises(ValueError, match=next(iter(changes))):
            run.update(**changes)
        assert run.run_file.read_bytes() == before

    def test_fields_that_nobody_set_are_not_written(self, run):
        begin(run)
        run.update(iteration=3)
        assert list(json.loads(run.run_file.read_text())) == [
            "format", "study", "arm", "schedule", "seed", "iterations", "iteration",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[]", "not a run description"),
            ("3", "not a run description"),
            ("null", "not a run description"),
            ("{}", "'study' is missing"),
            ('{"format": 1}', "'study' is missing"),
            ('{"format": "1"}', "not a run description"),
            ('{"format": 3, "colour": 1}', "of format 1 or 2; if a later"),
            (
                '{"format": 1' + "0" * 400 + "}",
                "of format 1 or 2; if a later",
            ),
            ('{"format": 1' + "0" * 5000 + "}", "not valid JSON"),
            ('{"format": ' + "[" * 200_000, "not valid JSON"),
            ('{"format": 2, "study": "\\ud800"}', "not valid JSON"),
            (WHOLE | {"colour": 1}, "'colour' is not known"),
            (WHOLE | {"branch": 5}, "'branch' is 5: an object is expected"),
            (WHOLE | {"resumes": [{"exact": 1}]}, r"'resumes\.0\.iteration' is missing"),
            (WHOLE | {"init": None}, "'init' is None: an object is expected"),
            (WHOLE | {"seconds": math.inf}, "'seconds' is inf: a finite number is expected"),
            (WHOLE | {"iterations": 10**30}, "'iterations' is 1000000.*less than or equal to"),
            (WHOLE | {"iterations": 0}, "'iterations' is 0: .* greater than or equal to 1"),
            (WHOLE | {"images_per_batch": 2**40}, "'images_per_batch' is 109951.*less than or"),
            (WHOLE | {"level": -1.0}, "'level' is -1.0: .*greater than 0.5"),
            (WHOLE | {"level": 1.0}, "'level' is 1.0: .*less than or equal to 0.9999"),
            (WHOLE | {"margin": -0.5}, "'margin' is -0.5: .*greater than 0"),
            (WHOLE | {"thresholds": {"margin": -0.5}}, r"'thresholds\.margin' is -0.5"),
            (WHOLE | {"noise": {"sd": 101, "because": "x"}}, r"'noise\.sd' is 101"),
            (WHOLE | {"init": {"pretraining": {"a": [2**63]}}}, "integers of 64 bits"),
            (WHOLE | {"init": {"pretraining": [math.nan]}}, "finite numbers are expected"),
        ],
    )
    def test_unknown_content_is_refused_and_kept(self, run, content, message):
        content = content if isinstance(content, str) else json.dumps(content)
        run.path.mkdir(parents=True)
        run.run_file.write_text(content)
        for attempt in (run.read, run.state, lambda: run.update(state="finished")):
            with pytest.raises(UserError, match=message) as raised:
                attempt()
            assert str(raised.value).startswith(str(run.run_file))
            assert len(str(raised.value)) < 300
        assert run.run_file.read_text() == content

    def test_truncated_file_is_refused_and_kept(self, run):
        run.path.mkdir(parents=True)
        run.run_file.write_text('{"format": 1, "sta')
        with pytest.raises(UserError, match=r"run\.json: not valid JSON"):
            run.update(state="finished")
        assert run.run_file.read_text() == '{"format": 1, "sta'

    def test_evaluation_files_sort_as_their_iterations(self, run):
        files = [run.evaluation_file(iteration) for iteration in (99, 100, 540_000)]
        assert files == sorted(files)
        assert [int(file.stem) for file in files] == [99, 100, 540_000]

    def test_find_run_folders(self, tmp_path):
        written = [RunFolder(tmp_path / name) for name in ("b/scratch/2x/seed0", "a/x/2x/seed1")]
        for run in written:
            begin(run)
        (tmp_path / "c").mkdir()
        assert find_run_folders(tmp_path) == written[::-1]
        assert find_run_folders(written[0].path) == written[:1]
        assert find_run_folders(tmp_path / "absent") == []
        listed = f"is no run; name one of the 2 in it: {written[1].path}, {written[0].path}"
        with pytest.raises(UserError, match=re.escape(f"{tmp_path}: {listed}")):
            RunFolder(tmp_path).read()


class TestState:
    def test_without_run_file(self, run):
        assert run.state() == "planned"

    @pytest.mark.parametrize("state", [state for state in get_args(State) if state != "running"])
    def test_is_what_the_file_says(self, run, state):
        begin(run, state=state)
        assert run.state() == state

    def test_running_without_an_owner_is_interrupted(self, run):
        begin(run, state="running")
        assert run.state() == "interrupted"

    def test_running_with_an_owner(self, run, owner):
        assert run.state() == "running"

    def test_on_another_machine_the_heartbeat_decides(self, run, owner):
        """A lock that was taken elsewhere may be invisible here, as that of a dead owner is."""
        run.update(host="elsewhere")
        owner.kill()
        owner.wait()
        last_beat = time.time() - DEAD_AFTER_SECONDS - 1
        os.utime(run.lock_file, (last_beat, last_beat))
        assert run.state() == "interrupted"
        os.utime(run.lock_file)
        assert run.state() == "running"

    def test_old_heartbeat_on_this_machine(self, run, owner):
        """Here the lock decides: a run that evaluates for an hour is no dead one."""
        os.utime(run.lock_file, (0, 0))
        assert run.state() == "running"

    def test_owner_beats(self, run, monkeypatch):
        monkeypatch.setattr("scratch_vs_pretrain.run_folder.HEARTBEAT_SECONDS", 0.01)
        with run.lock():
            os.utime(run.lock_file, (0, 0))
            _wait_for(lambda: run.lock_file.stat().st_mtime > 0)

    def test_clock_that_jumped_back(self, run, owner):
        """A heartbeat in the future calls no living run dead, and no dead one alive for ever."""
        run.update(host="elsewhere")
        future = time.time() + 3600
        os.utime(run.lock_file, (future, future))
        assert run.state() == "running"
        owner.kill()
        owner.wait()
        assert run.state() == "interrupted"

    def test_moved_folder(self, run, owner, tmp_path):
        owner.kill()
        owner.wait()
        moved = RunFolder(run.path.parent.rename(tmp_path / "elsewhere") / "seed0")
        assert moved.state() == "interrupted"
        with moved.lock():
            moved.update(state="running")
            assert moved.state() == "running"
        assert run.state() == "planned"


class TestLock:
    def test_second_owner_is_refused(self, run, owner):
        assert run.is_locked()
        with pytest.raises(UserError, match="another process trains this run") as raised:
            run.lock().__enter__()
        assert str(run.path) in str(raised.value)
        assert run.read().state == "running"

    def test_dies_with_its_owner(self, run, owner):
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert not run.is_locked()
        assert run.state() == "interrupted"
        with run.lock():
            assert run.is_locked()

    def test_is_free_after_use(self, run):
        with run.lock():
            pass
        assert not run.is_locked()
        with run.lock():
            assert run.is_locked()

    def test_is_free_after_an_exception(self, run):
        with pytest.raises(RuntimeError), run.lock():
            raise RuntimeError
        assert not run.is_locked()

    def test_looking_leaves_no_trace(self, run):
        assert not run.is_locked()
        assert not run.path.exists()

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "study").write_text("a file in the folder's place")
        with (
            pytest.raises(UserError, match="cannot be written"),
            RunFolder(tmp_path / "study" / "scratch").lock(),
        ):
            pass

    def test_is_not_refused_for_a_look_at_it(self, run):
        """`svp status --watch` asks is_locked() all the time."""
        with run.lock():
            pass
        with other_process(LOOK_AT_LOCK, run.path):
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                with run.lock():
                    pass

    def test_survives_the_rewriting_of_run_json(self, run):
        """run.json is replaced at every update; the lock is on a file that is not."""
        with run.lock():
            begin(run)
            for iteration in range(3):
                run.update(iteration=iteration)
            with pytest.raises(UserError), RunFolder(Path(run.path)).lock():
                pass


def test_paths_are_inside_the_folder(run):
    for name in ("config_file", "run_file", "metrics_file", "evaluations", "log_file"):
        assert getattr(run, name).parent == run.path
    assert run.checkpoints.parent == run.lock_file.parent == run.path


def test_written_run_file_is_plain_json(run):
    begin(run, state="finished", reason=None)
    assert json.loads(run.run_file.read_text())["reason"] is None


def _wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.001)
