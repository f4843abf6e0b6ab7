import copy
from types import SimpleNamespace

import pytest
import torch

from scratch_vs_pretrain.run_info import Provenance
from scratch_vs_pretrain.training.kernels import (
    deterministic_kernels,
    inexact_because,
    numerics,
)


def config(device, deterministic=False):
    return SimpleNamespace(
        MODEL=SimpleNamespace(DEVICE=device), SVP=SimpleNamespace(DETERMINISTIC=deterministic)
    )


def start(device="cpu", **changes):
    now = {"processes": 1, "threads": 2, "processor": "Model X", "deterministic": True}
    return {
        "device": device,
        **(now | changes),
        "versions": {"torch": "2.11.0", "python": "3.11.9"},
    }


def test_the_same_again_is_exact():
    assert inexact_because(Provenance(**start()), start()) == []
    assert inexact_because(Provenance(**start("H200")), start("H200")) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"processes": 2}, "processes was 1 before and is 2 now"),
        ({"threads": 1}, "threads was 2 before and is 1 now"),
        ({"processor": "Model Y"}, "processor was Model X before and is Model Y now"),
    ],
)
def test_what_changed_is_named(changes, reason):
    assert inexact_because(Provenance(**start()), start(**changes)) == [reason]


def test_another_version_is_named():
    now = copy.deepcopy(start())
    now["versions"]["torch"] = "2.12.0"
    assert inexact_because(Provenance(**start()), now) == [
        "torch was 2.11.0 before and is 2.12.0 now"
    ]


def test_gpus_are_not_exact_by_themselves():
    usual = start("H200", deterministic=False)
    (reason,) = inexact_because(Provenance(**usual), usual)
    assert "SVP.DETERMINISTIC" in reason
    several = start("H200", processes=8)
    (reason,) = inexact_because(Provenance(**several), several)
    assert "several GPUs" in reason


def test_a_run_of_which_nothing_is_known():
    assert inexact_because(None, start()) == ["it is not known what trained before"]
    assert inexact_because(Provenance(device="cpu"), start()) != []


def test_sums_on_several_threads_are_ordered():
    """index_put_ with accumulation, the gradient of indexing, is unordered on threads by itself.

    See torch's aten/src/ATen/native/cpu/IndexKernel.cpp.
    """
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 50, (200_000,), generator=generator)
    values = torch.randn(200_000, generator=generator)
    expected = torch.zeros(50)
    expected.index_put_((index,), values, accumulate=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with deterministic_kernels(config("cpu")):
            for _ in range(5):
                found = torch.zeros(50).index_put_((index,), values, accumulate=True)
                assert torch.equal(found, expected)
    finally:
        torch.set_num_threads(threads)


def test_settings_are_put_back():
    with deterministic_kernels(config("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_kernels(config("cuda")):
        assert not torch.are_deterministic_algorithms_enabled()


def test_numerics_of_this_process():
    found = numerics(config("cpu"))
    assert found["processes"] == 1
    assert found["threads"] == torch.get_num_threads()
    assert found["deterministic"]
    assert found["processor"]
