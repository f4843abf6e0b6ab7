import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.cluster import Cluster, minutes_of, parameter


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("90:01", 91),
        ("24:00:00", 24 * 60),
        ("1:30:30", 91),
        ("2-12", 60 * 60),
        ("2-12:30", 60 * 60 + 30),
        ("1-0:0:1", 24 * 60 + 1),
    ],
)
def test_time_limits_as_slurm_writes_them(text, minutes):
    """The forms of sbatch's --time (https://slurm.schedmd.com/sbatch.html)."""
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "day", "24h", "1:2:3:4", "-3", "0", "0:00"])
def test_what_is_no_time_limit(text):
    with pytest.raises(ValueError, match="no time"):
        minutes_of(text)


@given(st.integers(0, 30), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_the_longest_form_is_the_sum_of_its_parts(days, hours, minutes, seconds):
    total = (days * 24 + hours) * 60 + minutes + (seconds > 0)
    text = f"{days}-{hours:02}:{minutes:02}:{seconds:02}"
    if total:
        assert minutes_of(text) == total


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("account=A", ("account", "A")),
        ("cpus-per-task=8", ("cpus_per_task", 8)),
        ("--mem=64GB", ("mem", "64GB")),
        ("comment=a=b", ("comment", "a=b")),
        ("exclusive", ("exclusive", True)),
    ],
)
def test_parameters(text, found):
    assert parameter(text) == found


def test_a_parameter_without_a_name():
    with pytest.raises(ValueError, match="KEY=VALUE"):
        parameter("=3")


def test_gpus_that_do_not_divide_over_the_nodes(tmp_path):
    with pytest.raises(UserError, match="--gpus-per-run 3 does not divide over --nodes 2"):
        Cluster("debug", gpus_per_run=3, nodes=2).executor(tmp_path)


def test_slurm_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"--launcher slurm: .*srun"):
        Cluster("slurm").executor(tmp_path)


def test_without_submitit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install .*\[slurm\]"):
        Cluster("local").executor(tmp_path)
