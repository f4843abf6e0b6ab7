"""Detectron2's steps for one image after another, beside the main stream of a GPU.

Labelling anchors and filtering proposals are many small kernels, between which Detectron2 waits
for the GPU; on the main stream it waits for all that was asked for before, and nothing else runs
meanwhile. The computations, and the random numbers they draw, are Detectron2's and stay as they
are.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from detectron2.modeling.proposal_generator import RPN
from torch import nn

PARTS = 4


def overlap(model: nn.Module) -> None:
    """Changes a detector on a GPU in place: anchors are labelled while the backbone computes, and
    the proposals of several images are filtered at once.

    A detector without a region proposal network stays as it is.
    """
    rpn: Any = getattr(model, "proposal_generator", None)
    if isinstance(rpn, RPN):
        _label_beside(model, rpn)
        rpn.predict_proposals = _in_parts(rpn, rpn.predict_proposals)


def _label_beside(model: Any, rpn: Any) -> None:
    """Labels need the ground truth, which is there before the backbone is asked for anything."""
    stream, ready = torch.cuda.Stream(model.device), torch.cuda.Event()
    preprocess, anchors_for = model.preprocess_image, rpn.anchor_generator.forward
    label = rpn.label_and_sample_anchors

    def preprocess_image(batch: list[dict[str, Any]]) -> Any:
        images = preprocess(batch)
        if model.training:
            for sample in batch:
                sample["instances"] = sample["instances"].to(model.device)
            ready.record()
        return images

    def anchor_generator(features: list[torch.Tensor]) -> Any:
        if not rpn.training:
            return anchors_for(features)
        # Of the features it takes the sizes alone.
        stream.wait_event(ready)
        with torch.cuda.stream(stream):
            return anchors_for(features)

    def label_and_sample_anchors(anchors: Any, instances: Any) -> Any:
        with torch.cuda.stream(stream):
            labels = label(anchors, instances)
        torch.cuda.current_stream(model.device).wait_stream(stream)
        return labels

    model.preprocess_image = preprocess_image
    rpn.anchor_generator.forward = anchor_generator
    rpn.label_and_sample_anchors = label_and_sample_anchors


def _in_parts(rpn: Any, predict: Callable[..., list]) -> Callable[..., list]:
    """Returns ``RPN.predict_proposals`` that gives each of a few threads some of the images."""
    device = next(rpn.parameters()).device
    streams = [torch.cuda.Stream(device) for _ in range(PARTS)]
    pool = ThreadPoolExecutor(PARTS, thread_name_prefix="proposals")

    def predict_proposals(
        anchors: Any, logits: list[torch.Tensor], deltas: list[torch.Tensor], sizes: list
    ) -> list:
        if not rpn.training:
            return predict(anchors, logits, deltas, sizes)
        main = torch.cuda.current_stream(device)
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

        def part(number: int) -> list:
            mine = slice(number * len(sizes) // PARTS, (number + 1) * len(sizes) // PARTS)
            if mine.start == mine.stop:
                return []
            # A thread begins without the modes of the one that started it.
            with (
                torch.cuda.stream(streams[number]),
                torch.autocast("cuda", autocast[1], enabled=autocast[0]),
            ):
                streams[number].wait_stream(main)
                some_logits, some_deltas = ([level[mine] for level in x] for x in (logits, deltas))
                return predict(anchors, some_logits, some_deltas, sizes[mine])

        found = [one for some in pool.map(part, range(PARTS)) for one in some]
        for stream in streams:
            main.wait_stream(stream)
        return found

    return predict_proposals
