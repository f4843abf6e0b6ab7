"""The config node this layer adds to Detectron2's, and the paper's schedule rule."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain import _detectron2
from scratch_vs_pretrain.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_svp_config(cfg: CfgNode) -> None:
    """Adds the ``SVP`` node, in which everything this layer can be told is defined."""
    node = type(cfg)
    cfg.SVP = node()

    # SOLVER.BASE_LR, SOLVER.WARMUP_ITERS and the "Nx" schedules are stated for this many images
    # per batch. An Nx schedule at another SOLVER.IMS_PER_BATCH is scaled by the linear rule.
    cfg.SVP.REFERENCE_BATCH = 16

    # Images of one orientation that are batched together to save padding
    # (DATALOADER.ASPECT_RATIO_GROUPING). A batch consists of such groups; the paper's holds eight
    # groups of two. Independent of the number of GPUs, so that the batches are, too.
    cfg.SVP.GROUP_SIZE = 2

    # Every so many iterations a line is added to metrics.json.
    cfg.SVP.LOG_PERIOD = 20

    # Evaluations beside those of TEST.EVAL_PERIOD, after this many completed iterations. The last
    # iteration is always evaluated.
    cfg.SVP.EVAL_ITERATIONS = ()

    # Checkpoints kept in a run folder, the newest ones.
    cfg.SVP.KEEP_CHECKPOINTS = 2

    # COCO-format data sets to register in every process: (name, annotation file, image folder).
    cfg.SVP.DATASETS = ()

    cfg.SVP.RESNETS = node()
    # Channels of the stem and of res2's output may be any multiple of 32 (Detectron2's builder
    # insists on 64 for R18 and R34); small studies train narrow networks.
    cfg.SVP.RESNETS.ALLOW_NARROW = False


def default_config() -> CfgNode:
    """Returns Detectron2's default config with the ``SVP`` node."""
    _detectron2.prepare()
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_svp_config(cfg)
    return cfg


def merge_file(cfg: CfgNode, path: Path) -> None:
    """Merges a config file (with ``_BASE_``), without executing anything that it holds.

    Raises:
        UserError: missing file, invalid or unsafe YAML, unknown key, or a value of another type.
    """
    import yaml

    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    try:
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not plain YAML ({_one_line(error)})") from None
    except (KeyError, ValueError, AssertionError, AttributeError, TypeError, OSError) as error:
        raise UserError(f"{path}: {_explain(cfg, error)}") from None


def merge_overrides(cfg: CfgNode, overrides: dict[str, Any], where: str) -> None:
    """Merges dotted keys; `where` names their origin in messages.

    Raises:
        UserError: unknown key (the nearest known one is named), or a value of another type.
    """
    for key, value in overrides.items():
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, ValueError, AssertionError, AttributeError, TypeError) as error:
            if not _has_key(cfg, key):
                raise UserError(f"{where}: unknown config key {key}{_nearest(cfg, key)}") from None
            raise UserError(f"{where}: {key}: {_one_line(error)}") from None


def flatten(cfg: Any, prefix: str = "") -> dict[str, Any]:
    """Returns a config as one flat dictionary of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _has_key(cfg: CfgNode, key: str) -> bool:
    return key in flatten(cfg)


def _nearest(cfg: CfgNode, key: str) -> str:
    near = difflib.get_close_matches(key, flatten(cfg), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _explain(cfg: CfgNode, error: Exception) -> str:
    text = _one_line(error).strip("'\"")
    unknown = re.search(r"Non-existent config key: (\S+)", text)
    return f"unknown config key {unknown[1]}{_nearest(cfg, unknown[1])}" if unknown else text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# The paper's schedule rule (Sections 3 and 4): 1x is 90k iterations of 16 images; the rate drops
# to a tenth 60k and again 20k iterations before the end, whatever the length.
ITERATIONS_1X = 90_000
DROPS_BEFORE_END = (60_000, 20_000)
REFERENCE_BATCH = 16


@dataclass(frozen=True)
class Schedule:
    """How long one run trains and when its rate drops.

    Attributes:
        name: names the run folder: "2x", "600it".
        iterations: length in iterations.
        drops_before_end: the rate drops so many iterations before the end, longest first.
        rate_factor: multiplies SOLVER.BASE_LR and divides SOLVER.WARMUP_ITERS (linear scaling).
    """

    name: str
    iterations: int
    drops_before_end: tuple[int, ...]
    rate_factor: float = 1.0

    @property
    def steps(self) -> tuple[int, ...]:
        """Iterations at which the rate drops."""
        return tuple(self.iterations - before for before in self.drops_before_end)

    def apply(self, cfg: CfgNode) -> None:
        """Writes the schedule into SOLVER."""
        cfg.SOLVER.MAX_ITER = self.iterations
        cfg.SOLVER.STEPS = self.steps
        cfg.SOLVER.BASE_LR *= self.rate_factor
        cfg.SOLVER.WARMUP_ITERS = round(cfg.SOLVER.WARMUP_ITERS / self.rate_factor)


def paper_schedule(
    multiple: int, images_per_batch: int = REFERENCE_BATCH, reference_batch: int = REFERENCE_BATCH
) -> Schedule:
    """Returns the paper's schedule of `multiple` times 90k iterations.

    At another batch size the rate scales with it, and iterations and drops inversely.
    """
    shrink = reference_batch / images_per_batch
    return Schedule(
        name=f"{multiple}x",
        iterations=round(ITERATIONS_1X * multiple * shrink),
        drops_before_end=tuple(round(before * shrink) for before in DROPS_BEFORE_END),
        rate_factor=images_per_batch / reference_batch,
    )


def short_schedule(iterations: int, name: str | None = None) -> Schedule:
    """Returns a schedule of a literal length with the proportions of 2x, for small studies."""
    last = [round(iterations * before / (2 * ITERATIONS_1X)) for before in DROPS_BEFORE_END]
    return Schedule(name or f"{iterations}it", iterations, tuple(last))
