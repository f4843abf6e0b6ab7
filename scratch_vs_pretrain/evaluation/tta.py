"""Test augmentation: detections merged over several scales and mirror images (``TEST.AUG``)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.modeling.roi_heads.keypoint_head import keypoint_rcnn_inference
from fvcore.transforms.transform import HFlipTransform
from torch import Tensor, nn

from scratch_vs_pretrain.config import augmentation_problems
from scratch_vs_pretrain.errors import UserError

# Of the detector: Detectron2 turns them off for the boxes, and leaves them so after an error.
_SWITCHES = ("mask_on", "keypoint_on")


@contextlib.contextmanager
def with_augmentation(cfg: Any, model: nn.Module, on: bool = True) -> Iterator[nn.Module]:
    """Yields a detector that merges its detections as ``TEST.AUG`` says, or `model` itself, a
    GeneralizedRCNN; `on=False` turns it off whatever the config says."""
    if not on or not cfg.TEST.AUG.ENABLED:
        yield model
        return
    if problems := augmentation_problems(cfg):
        raise UserError("; ".join(problems))
    heads: Any = model.roi_heads
    switches = {name: getattr(heads, name) for name in _SWITCHES if hasattr(heads, name)}
    augmented = KeypointRCNNWithTTA if cfg.MODEL.KEYPOINT_ON else GeneralizedRCNNWithTTA
    try:
        yield augmented(cfg, model)
    finally:
        for name, on in switches.items():
            setattr(heads, name, on)


class KeypointRCNNWithTTA(GeneralizedRCNNWithTTA):
    """Test augmentation of a keypoint detector, which Detectron2's own refuses.

    Boxes and masks are merged by Detectron2. For the merged boxes the heat maps of all scales and
    mirror images are averaged, as Detectron does (core/test.py, TEST.KPS_AUG with HM_AVG).
    """

    def __init__(self, cfg: Any, model: nn.Module) -> None:
        without = cfg.clone()
        without.defrost()
        without.MODEL.KEYPOINT_ON = False  # which Detectron2 asserts
        super().__init__(without, model)
        self._mirrored = list(create_keypoint_hflip_indices(cfg.DATASETS.TRAIN))

    def _inference_one_image(self, input: dict[str, Any]) -> dict[str, Any]:
        found = super()._inference_one_image(input)["instances"]
        inputs, transforms = self._get_augmented_inputs(input)
        boxes = self._rescale_detected_boxes(inputs, found, transforms)
        outputs = self._batch_inference(inputs, boxes)
        maps = [
            mirror_back(output.pred_keypoint_heatmaps, self._mirrored)
            if any(isinstance(one, HFlipTransform) for one in transform.transforms)
            else output.pred_keypoint_heatmaps
            for output, transform in zip(outputs, transforms, strict=True)
        ]
        keypoint_rcnn_inference(torch.stack(maps).mean(0), [found])
        return {"instances": found}


def mirror_back(maps: Tensor, mirrored: list[int]) -> Tensor:
    """Returns heat maps, (objects, keypoints, height, width), of a mirror image as those of the
    image; `mirrored` has for each keypoint the index of the one that it is in the mirror."""
    return maps.flip(3)[:, mirrored]
