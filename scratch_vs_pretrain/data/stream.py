"""The training stream: the k-th batch is a pure function of (seed, k).

Detectron2's loader shuffles from a global seed, groups by orientation after loading, and draws
augmentations from worker-local random states, so a batch depends on the number of workers and on
where training was resumed. Here indices are grouped before anything is loaded, and each sample's
augmentation draws from (seed, its position in the stream).
"""

import contextlib
import itertools
import logging
import math
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm

from scratch_vs_pretrain.data.loading import load_training_records
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.pictures import image_errors, register_deep_images

logger = logging.getLogger(__name__)

register_deep_images()

# Images tried in place of one that cannot be read.
MOST_REPLACEMENTS = 100

Batch = tuple[list[dict[str, Any]], list[str]]


def batch_indices(
    landscape: np.ndarray, seed: int, batch_size: int, group_size: int
) -> Iterator[np.ndarray]:
    """Yields the record indices of batch 0, 1, 2, ... without end, as (batch_size,) int64 arrays.

    Each epoch is a permutation drawn from (seed, epoch). Images of one orientation are collected
    into groups of `group_size`; a group is due when its last image is, and a batch is the next
    ``batch_size / group_size`` groups. No image is dropped or repeated within an epoch; images
    that complete no group yet wait for the next one.

    Args:
        landscape: (n,) bool, the orientation of each record; all equal turns grouping off.
        batch_size: over all processes; `group_size` divides it.
    """
    waiting: dict[bool, list[int]] = {False: [], True: []}
    orientations, batch = landscape.tolist(), []
    for epoch in itertools.count():
        for index in np.random.default_rng([seed, epoch]).permutation(len(landscape)).tolist():
            group = waiting[orientations[index]]
            group.append(index)
            if len(group) == group_size:
                batch += group
                group.clear()
            if len(batch) == batch_size:
                yield np.array(batch)
                batch.clear()


def counted(batch: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Returns what a batch has: augmented images, their instances, unpadded pixels."""
    return {
        "images": len(batch),
        "instances": sum(len(sample.get("instances", ())) for sample in batch),
        "pixels": sum(math.prod(sample["image"].shape[-2:]) for sample in batch),
    }


@contextlib.contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Draws everything inside from `entropy`, and leaves the process's random states as found."""
    saved = random.getstate(), np.random.get_state(), torch.get_rng_state()
    low, high = np.random.SeedSequence(entropy).generate_state(2)
    random.seed(int(low))
    np.random.seed(int(low))
    torch.default_generator.manual_seed(int(high))
    try:
        yield
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])
        torch.set_rng_state(saved[2])


class _SeededSamples(torch.utils.data.Dataset):
    """Maps (position, index) pairs of one batch to samples and the files it could not read."""

    def __init__(self, records: Sequence[dict[str, Any]], mapper: Callable, seed: int) -> None:
        # Serialized as Detectron2 does (data/build.py), so that workers share one copy.
        self._records = DatasetFromList(list(records), copy=False)
        self._mapper = mapper
        self._seed = seed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, batch: list[tuple[int, int]]) -> tuple[list[dict[str, Any]], list[str]]:
        samples, unreadable = [], []
        for position, index in batch:
            # One that cannot be read is replaced by the next record that can, always the same.
            for offset in range(min(len(self), MOST_REPLACEMENTS)):
                record = self._records[(index + offset) % len(self)]
                try:
                    with seeded(self._seed, position), image_errors(record["file_name"]):
                        samples.append(self._mapper(record))
                    break
                except UserError as error:
                    unreadable.append(str(error))
        return [sample for sample in samples if sample is not None], unreadable


class TrainingStream:
    """An iterable over this process's part of the batches, from any batch on.

    Attributes:
        samples: what this process has handed out, see :func:`counted`.
        unreadable: what is wrong with each image that another one had to replace.
        repaired: how many entries were dropped or mended, by what was wrong.
    """

    def __init__(
        self, cfg: Any, mapper: Callable | None = None, prefetch: bool = False, start: int = 0
    ) -> None:
        """Loads the records of ``cfg.DATASETS.TRAIN``; the mapper is Detectron2's by default,
        `prefetch` hands out images on the CUDA device MODEL.DEVICE, copied there ahead, and the
        first batch of each iteration over the stream is `start`.

        Raises:
            UserError: the batch does not divide over the processes, or no record is left.
        """
        world = comm.get_world_size()
        if cfg.SOLVER.IMS_PER_BATCH % world:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which does not divide over "
                f"{world} processes; change one of them"
            )
        records, self.repaired = load_training_records(cfg)
        self.samples = Counter(images=0, instances=0, pixels=0)
        self.unreadable: set[str] = set()
        self._cfg = cfg
        self._prefetch = prefetch
        self._start = start
        self._limit = cfg.SVP.MAX_UNREADABLE * len(records)
        self._dataset = _SeededSamples(records, mapper or DatasetMapper(cfg, True), cfg.SEED)
        grouping = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        self._landscape = np.array([grouping and r["width"] > r["height"] for r in records])

    def _items(self) -> Iterator[list[tuple[int, int]]]:
        """Yields this process's (position, index) pairs of each batch."""
        size = self._cfg.SOLVER.IMS_PER_BATCH
        group = math.gcd(size, self._cfg.SVP.GROUP_SIZE)
        share = size // comm.get_world_size()
        mine = slice(comm.get_rank() * share, (comm.get_rank() + 1) * share)
        batches = batch_indices(self._landscape, self._cfg.SEED, size, group)
        for number, batch in enumerate(batches):
            if number >= self._start:
                positions = range(number * size, (number + 1) * size)
                yield list(zip(positions, batch.tolist(), strict=True))[mine]

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        loader = torch.utils.data.DataLoader(
            self._dataset,
            sampler=self._items(),
            batch_size=None,
            num_workers=self._cfg.DATALOADER.NUM_WORKERS,
            worker_init_fn=_ignore_interrupt,
            pin_memory=self._prefetch,
            # The loader draws its workers' base seed from this generator, not from the global one.
            generator=torch.Generator().manual_seed(self._cfg.SEED),
        )
        batches = prefetched(loader, self._cfg.MODEL.DEVICE) if self._prefetch else loader
        for batch, unreadable in batches:
            for file in set(unreadable) - self.unreadable:
                logger.warning("%s; another image takes its place", file)
                self.unreadable.add(file)
            if len(self.unreadable) > self._limit:
                raise UserError(
                    f"{len(self.unreadable)} of {len(self._dataset)} training images cannot be "
                    f"read, more than SVP.MAX_UNREADABLE ({self._cfg.SVP.MAX_UNREADABLE}) admits, "
                    f"for example {min(self.unreadable)}"
                )
            if not batch:
                raise UserError(f"no training image can be read, for example {unreadable[0]}")
            self.samples.update(counted(batch))
            yield batch


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the trainer decides when its workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def prefetched(batches: Iterable[Batch], device: str) -> Iterator[Batch]:
    """Yields the same batches with their images on a CUDA device, read one batch ahead.

    The copy runs on a stream of its own while the batch before is trained on; it overlaps only if
    the images are in pinned memory. Instances are small and stay where they are.
    """
    stream = torch.cuda.Stream(device)
    ahead: Batch | None = None
    for samples, unreadable in batches:
        with torch.cuda.stream(stream):
            copied = [
                {**sample, "image": sample["image"].to(device, non_blocking=True)}
                for sample in samples
            ]
        if ahead is not None:
            yield ahead
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for sample in copied:
            # Its memory is the side stream's, and must not be reused before training is through.
            sample["image"].record_stream(current)
        ahead = copied, unreadable
    if ahead is not None:
        yield ahead
