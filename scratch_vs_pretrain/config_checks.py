"""What of a config cannot train or be evaluated as it should; each says what to change.

Configs are all that is looked at, without torch; modeling/checks.py looks at built models.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from fvcore.common.config import CfgNode

# The checks that `admit` may name, each of which finds a mistake that trains without complaint.
ADMISSIBLE = (
    "frozen-stages-from-scratch",
    "frozen-norm-from-scratch",
    "small-batch-norm",
    "no-warm-up",
)
# Below this many images per process BatchNorm's error grows quickly (Wu & He, "Group
# Normalization", Figure 1).
SMALLEST_BATCH = 16

VGG_BACKBONE = "build_svp_vgg16_backbone"
# Settings of parts that this detector does not have, or has without normalization.
NORM_KEYS = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")

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


def _is_pixel_format(value: str) -> bool:
    from PIL import Image

    return value in (*Image.MODES, "BGR", "YUV-BT.601")


# Keys of which a value of the right type can still be none: what tells that, and what to write.
VALUES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "DATALOADER.SAMPLER_TRAIN": (
        lambda value: value == "TrainingSampler",
        "every image is drawn alike here; set it to TrainingSampler",
    ),
    "INPUT.FORMAT": (_is_pixel_format, "set it to BGR or RGB"),
    "INPUT.MIN_SIZE_TRAIN": (_are_sides, "write sizes in pixels, such as [640, 800]"),
    **dict.fromkeys(("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"), _between(1)),
    **dict.fromkeys(("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"), _between(1)),
    **dict.fromkeys(("INPUT.MIN_SIZE_TEST", "DATALOADER.NUM_WORKERS"), _between(0)),
    **dict.fromkeys(("TEST.EVAL_PERIOD", "SOLVER.CHECKPOINT_PERIOD"), _between(0)),
    **dict.fromkeys(("SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY", "SVP.LOG_PERIOD"), _between(0)),
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
}


def value_problems(values: Mapping[str, Any]) -> list[str]:
    """Finds values that nothing can be made of, in a flat config."""
    return [
        f"{key} is {values[key]!r}; {told}"
        for key, (fits, told) in VALUES.items()
        if not fits(values[key])
    ]


def missing_warmup(cfg: CfgNode) -> list[str]:
    """Finds a schedule that starts at the full learning rate."""
    solver = cfg.SOLVER
    if solver.WARMUP_ITERS <= 0:
        return [f"no warm-up: SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS}; set it above 0"]
    if (factor := solver.WARMUP_FACTOR) >= 1:
        return [f"no warm-up: SOLVER.WARMUP_FACTOR is {factor}; set it below 1, for example 0.001"]
    return []


def norm_problems(cfg: CfgNode) -> list[str]:
    """Finds normalization that a config with this backbone asks for."""
    if cfg.MODEL.BACKBONE.NAME != VGG_BACKBONE:
        return []
    norms = {f"MODEL.{key}.NORM": cfg.MODEL[key].NORM for key in NORM_KEYS}
    found = ", ".join(f"{key} {norm}" for key, norm in norms.items() if norm)
    if not found:
        return []
    return [f'VGG-16 has no normalization layers, but the config sets {found}; set it to ""']


def augmentation_problems(cfg: Any) -> list[str]:
    """Finds what a config asks of ``TEST.AUG`` that cannot be done; each says what to change."""
    if not cfg.TEST.AUG.ENABLED:
        return []
    problems = []
    own = [name for name, *_ in cfg.SVP.VOC_DATASETS]
    voc = [name for name in cfg.DATASETS.TEST if str(name).startswith("voc_") or name in own]
    if voc:
        problems.append(
            "PASCAL VOC's numbers are without test augmentation: set TEST.AUG.ENABLED to False "
            f"for {', '.join(voc)}"
        )
    sizes = cfg.TEST.AUG.MIN_SIZES
    if not sizes or min(sizes) < 1 or cfg.TEST.AUG.MAX_SIZE < 1:
        problems.append("TEST.AUG.MIN_SIZES and MAX_SIZE must be sizes in pixels, at least one")
    return problems
