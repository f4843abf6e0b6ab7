"""Values of config keys of which nothing can be made, or which this trainer would ignore."""

import re
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode

from scratch_vs_pretrain.config import flatten

MOST_PIXELS = 1_000_000  # of a side


def _are_names(value: Any) -> bool:
    return all(isinstance(name, str) for name in value)


def _are_sides(value: Any) -> bool:
    return len(value) > 0 and all(
        type(side) in (int, float) and 0 <= side <= MOST_PIXELS for side in value
    )


def _between(low: float, high: float = 1e300) -> tuple[Callable[[Any], bool], str]:
    most = f" and at most {high:,}" if high < 1e300 else ""
    return lambda value: low <= value <= high, f"it must be at least {low}{most}"  # NaN is neither


def _only(value: Any, why: str) -> tuple[Callable[[Any], bool], str]:
    return lambda other: other == value, f"{why}; set it to {value!r}"


def _is_pixel_format(value: str) -> bool:
    from PIL import Image

    return value in (*Image.MODES, "BGR", "YUV-BT.601")


# Keys of which a value of the right type can still be none: what tells that, and what to write.
VALUES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "INPUT.FORMAT": (_is_pixel_format, "set it to BGR or RGB"),
    "INPUT.MIN_SIZE_TRAIN": (_are_sides, "write sizes in pixels, such as [640, 800]"),
    **dict.fromkeys(("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"), _between(1)),
    **dict.fromkeys(("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"), _between(1)),
    **dict.fromkeys(("INPUT.MIN_SIZE_TEST", "DATALOADER.NUM_WORKERS"), _between(0)),
    **dict.fromkeys(("TEST.EVAL_PERIOD", "SOLVER.CHECKPOINT_PERIOD"), _between(0)),
    **dict.fromkeys(("SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM"), _between(0)),
    **dict.fromkeys(("SOLVER.BIAS_LR_FACTOR", "SVP.LOG_PERIOD"), _between(0)),
    "SOLVER.MOMENTUM": (lambda value: 0 <= value < 1, "it must be at least 0 and below 1"),
    "SOLVER.GAMMA": (lambda value: 0 < value <= 1, "it must be above 0 and at most 1"),
    "SOLVER.WARMUP_FACTOR": _between(0, 1),
    **dict.fromkeys(("SVP.MAX_UNREADABLE", "SVP.MAX_DROPPED"), _between(0, 1)),
    "SVP.KEEP_CHECKPOINTS": _between(1),
    "SOLVER.BASE_LR": (lambda value: 0 < value < 1e300, "it must be above 0"),
    "SOLVER.IMS_PER_BATCH": _between(1, 100_000),
    "MODEL.DEVICE": (re.compile(r"cpu|cuda(:\d+)?").fullmatch, "set it to cpu or cuda"),
    "SOLVER.AMP.ENABLED": (
        lambda value: not value,
        "it is Detectron2's float16, which this trainer does not do; set it to False and "
        "SVP.FAST.ENABLED to True for bfloat16",
    ),
    "SVP.VGG.WIDTH": _between(1),
    "SVP.LOAD": (("backbone", "detector").__contains__, "set it to backbone or detector"),
    "SVP.FREEZE": (("", "backbone").__contains__, 'set it to backbone, or "" for nothing'),
    "SVP.NORM_WEIGHTS": (("all", "affine_only").__contains__, "set it to all or affine_only"),
    "SVP.TIMM.NORM": (("", "GN").__contains__, 'set it to GN, or "" for the network\'s own'),
    "SVP.ADMIT": (_are_names, "write a list of names"),
    "SVP.EVALUATORS": (_are_names, "write a list of registered names"),
    # Detectron2's, which nothing here does as they say.
    "DATALOADER.SAMPLER_TRAIN": _only("TrainingSampler", "every image is drawn alike here"),
    "SOLVER.LR_SCHEDULER_NAME": _only("WarmupMultiStepLR", "rates drop as `schedules` say"),
    "SOLVER.WARMUP_METHOD": _only("linear", "the warm-up is linear"),
    "SOLVER.REFERENCE_WORLD_SIZE": _only(0, "no batch depends on the number of GPUs"),
    "TEST.PRECISE_BN.ENABLED": _only(False, "BatchNorm keeps the statistics of training"),
    "TEST.EXPECTED_RESULTS": _only([], "nothing is compared with them"),
    "CUDNN_BENCHMARK": _only(False, "resuming was not exact with it"),
    "FLOAT32_PRECISION": _only("", "torch's own precision is kept"),  # of upstream main
}


def value_problems(cfg: CfgNode) -> list[str]:
    """Finds values that nothing can be made of, and those that would be ignored."""
    values = flatten(cfg)
    return [
        f"{key} is {values[key]!r}; {told}"
        for key, (fits, told) in VALUES.items()
        if key in values and not fits(values[key])
    ]
