"""Images copied to a GPU ahead of their use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

Batch = tuple[list[dict[str, Any]], list[str]]


def prefetched(batches: Iterable[Batch], device: str) -> Iterator[Batch]:
    """Yields the same batches with their images on a CUDA device, read one batch ahead.

    The copy runs on a stream of its own while the batch before is trained on; it overlaps only if
    the images are in pinned memory. Instances are small and stay where they are.

    Args:
        batches: (samples, unreadable files) as the training stream loads them.
        device: a CUDA device.
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
