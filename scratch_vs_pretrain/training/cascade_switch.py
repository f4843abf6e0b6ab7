"""From a plain detector to Cascade R-CNN in the middle of training, as the paper saved time.

The cascade refines boxes in three stages, each with a box head and a box predictor of its own.
What becomes of a plain checkpoint:

- Backbone, FPN, RPN and mask head are the same network: copied.
- The first stage has the IoU threshold and box weights that the plain detector was trained with.
  It takes the trained box head and classifier: copied.
- The cascade's box regression is the same for all classes. If the plain detector has one regressor
  for each class, the first stage takes their mean; else it is copied.
- The second and third stage see better boxes than anything was trained for. They keep the random
  initialization of the cascade model.

The momentum of a copied parameter goes with it. Averaged and new parameters start without, as at
the beginning of a training. Learning rate, iteration, random states and counters go on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn, optim

from scratch_vs_pretrain.errors import UserError

logger = logging.getLogger(__name__)

_STAGE = re.compile(r"^roi_heads\.(box_head|box_predictor)\.(\d+)\.(.+)$")
_REGRESSORS = "roi_heads.box_predictor.bbox_pred."
BOX_SIZE = 4
NAMES_SHOWN = 5


@dataclass(frozen=True)
class SwitchedModel:
    """A cascade model's state made of a plain one's, and what became of each name."""

    state: dict[str, Tensor]
    copied: tuple[str, ...]  # the plain model's, unchanged
    averaged: tuple[str, ...]  # a mean over the plain model's classes
    fresh: tuple[str, ...]  # what the plain model has nothing for


def switched_state(
    plain_state: Mapping[str, Any], cascade_model: nn.Module, cascade_optimizer: optim.Optimizer
) -> dict[str, Any]:
    """Returns the checkpoint with which a cascade model goes on where a plain one stopped.

    Args:
        plain_state: a plain model's checkpoint; not changed.
        cascade_model: newly built; its own weights are those of the later stages.
        cascade_optimizer: newly built for it, by the same recipe as the plain one.

    Raises:
        UserError: the two models differ in more than the cascade.
    """
    switched = switched_model(plain_state["model"], cascade_model.state_dict())
    logger.info(
        "Switched to cascade: %d tensors copied, %d averaged over classes, %d start anew",
        *map(len, (switched.copied, switched.averaged, switched.fresh)),
    )
    names = {id(parameter): name for name, parameter in cascade_model.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in cascade_optimizer.param_groups]
    optimizer = switched_optimizer(plain_state["optimizer"], groups, set(switched.copied))
    return {**plain_state, "model": switched.state, "optimizer": optimizer}


def switched_model(plain: Mapping[str, Tensor], cascade: Mapping[str, Tensor]) -> SwitchedModel:
    """Returns what becomes of a plain model's state dict; see the module's text.

    Raises:
        UserError: the cascade has no place for a tensor of the plain model, or lacks one outside of
            its later stages, or one of another shape.
    """
    state, copied, averaged, fresh = {}, [], [], []
    for name, own in cascade.items():
        origin = plain_name(name)
        if origin is None:
            state[name] = own
            fresh.append(name)
        elif origin in plain and plain[origin].shape == own.shape:
            state[name] = plain[origin]
            copied.append(name)
        elif origin in plain and _is_per_class(origin, plain[origin], own):
            state[name] = plain[origin].unflatten(0, (-1, BOX_SIZE)).mean(0)
            averaged.append(name)
    used = {plain_name(name) for name in state}
    problems = {
        "that it lacks": [name for name in cascade if name not in state],
        "of which it has too much": [name for name in plain if name not in used],
    }
    for what, names in problems.items():
        if names:
            some = ", ".join(names[:NAMES_SHOWN])
            raise UserError(
                f"the plain detector cannot be switched to this cascade, because of {len(names)} "
                f"tensors {what} ({some}); switch.config may add the cascade alone"
            )
    return SwitchedModel(state, tuple(copied), tuple(averaged), tuple(fresh))


def switched_optimizer(
    plain: Mapping[str, Any], groups: Iterable[list[str]], copied: set[str]
) -> dict[str, Any]:
    """Returns an SGD state dict for the cascade's parameters with the momentum of copied ones.

    An optimizer numbers its parameters by group. Both models register theirs in the same order, so
    that leaving out the later stages gives the plain optimizer's numbers.

    `groups` are the names of the cascade optimizer's parameters.

    Raises:
        UserError: the groups are not those of the plain optimizer.
    """
    groups = list(groups)
    earlier = [[name for name in names if plain_name(name) is not None] for names in groups]
    if [len(group["params"]) for group in plain["param_groups"]] != [len(g) for g in earlier]:
        raise UserError(
            "the plain detector cannot be switched to this cascade: its optimizer has other groups "
            "of parameters; switch.config may not change SOLVER"
        )
    numbers = {
        name: number
        for group, names in zip(plain["param_groups"], earlier, strict=True)
        for number, name in zip(group["params"], names, strict=True)
    }
    state, param_groups, count = {}, [], 0
    for group, names in zip(plain["param_groups"], groups, strict=True):
        own = range(count, count + len(names))
        count += len(names)
        param_groups.append({**group, "params": list(own)})
        for number, name in zip(own, names, strict=True):
            if name in copied and numbers[name] in plain["state"]:
                state[number] = plain["state"][numbers[name]]
    return {**plain, "state": state, "param_groups": param_groups}


def plain_name(name: str) -> str | None:
    """Returns what a cascade model's tensor is called in the plain model, None in later stages."""
    stage = _STAGE.match(name)
    if stage is None:
        return name
    return f"roi_heads.{stage[1]}.{stage[3]}" if stage[2] == "0" else None


def _is_per_class(name: str, plain: Tensor, own: Tensor) -> bool:
    return (
        name.startswith(_REGRESSORS)
        and len(own) == BOX_SIZE
        and len(plain) % BOX_SIZE == 0
        and plain.shape[1:] == own.shape[1:]
    )
