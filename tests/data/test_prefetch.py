import pytest
import torch

from scratch_vs_pretrain.data.stream import prefetched

BATCHES = [
    ([{"image": torch.full((3, 4, 4), k, dtype=torch.uint8), "file_name": str(k)}], [f"bad {k}"])
    for k in range(4)
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_same_batches_on_the_device(count):
    got = list(prefetched(iter(BATCHES[:count]), "cuda"))
    assert [unreadable for _, unreadable in got] == [u for _, u in BATCHES[:count]]
    for (samples, _), (expected, _) in zip(got, BATCHES, strict=False):
        assert samples[0]["image"].is_cuda
        assert torch.equal(samples[0]["image"].cpu(), expected[0]["image"])
        assert samples[0]["file_name"] == expected[0]["file_name"]
        assert not expected[0]["image"].is_cuda


def test_one_batch_is_read_ahead(monkeypatch):
    """The order of reading and handing out, with the CUDA calls replaced by nothing."""
    import contextlib

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    read = []

    def source():
        for number, batch in enumerate(BATCHES):
            read.append(number)
            yield batch

    handed_out = []
    for samples, unreadable in prefetched(source(), "cpu"):
        handed_out.append((int(samples[0]["image"][0, 0, 0]), unreadable, len(read)))
    assert handed_out == [(k, [f"bad {k}"], min(k + 2, 4)) for k in range(4)]
