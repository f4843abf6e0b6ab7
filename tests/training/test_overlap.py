import contextlib

import pytest
import torch
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from scratch_vs_pretrain.training.overlap import PARTS, overlap


@pytest.fixture
def trainer_on(trainer_with):
    """Builds a trainer on as many pictures as a device is asked to take at a time."""
    return lambda device, images: trainer_with(
        "output", {"MODEL.DEVICE": device, "SOLVER.IMS_PER_BATCH": images}
    )


@pytest.fixture
def without_streams(monkeypatch):
    """CUDA's streams and events, replaced by ones that do nothing and note what waits for what."""
    waits = []

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            waits.append("stream")

        def wait_event(self, event):
            assert event.recorded
            waits.append("event")

    class Event:
        recorded = False

        def record(self):
            self.recorded = True

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    return waits


def losses(trainer, batch):
    """Returns the losses of one batch, with the same random draws each time."""
    seed_all_rng(1)
    found = trainer.network([dict(sample) for sample in batch])
    return {name: loss.item() for name, loss in found.items()}


def batch_of(trainer):
    return next(iter(trainer.stream.start_at(0)))


# Fewer images than parts, as many, and more that do not divide.
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("images", [2, PARTS, 6])
def test_the_same_losses(trainer_on, without_streams, images):
    trainer = trainer_on("cpu", images)
    batch = batch_of(trainer)
    with EventStorage(0):
        expected = losses(trainer, batch)
        overlap(trainer.network)
        assert losses(trainer, batch) == expected
    # The labels' stream for the ground truth, the main one for the labels, each part for the
    # features and the main one for each part.
    working = min(images, PARTS)
    assert sorted(without_streams) == ["event"] + ["stream"] * (1 + working + PARTS)


def test_evaluation_stays_as_it_is(trainer_on, without_streams):
    trainer = trainer_on("cpu", 2)
    batch = [{"image": sample["image"]} for sample in batch_of(trainer)]
    trainer.network.eval()
    with torch.no_grad():
        expected = trainer.network(batch)
        overlap(trainer.network)
        found = trainer.network(batch)
    assert without_streams == []
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["instances"].scores, other["instances"].scores)


def test_a_detector_without_proposals_stays_as_it_is(without_streams):
    model = torch.nn.Module()
    overlap(model)
    model.proposal_generator = None
    overlap(model)
    assert without_streams == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_losses_on_a_gpu(trainer_on):
    trainer = trainer_on("cuda", 6)
    batch = batch_of(trainer)
    with EventStorage(0):
        expected = losses(trainer, batch)
        overlap(trainer.network)
        for _ in range(3):
            assert losses(trainer, batch) == pytest.approx(expected, rel=1e-5)
