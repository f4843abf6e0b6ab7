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

import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn, optim

logger = logging.getLogger(__name__)

_STAGE = re.compile(r"^roi_heads\.(box_head|box_predictor)\.(\d+)\.(.+)$")
BOX_SIZE = 4


def switched_state(
    plain: Mapping[str, Any], cascade_model: nn.Module, cascade_optimizer: optim.Optimizer
) -> dict[str, Any]:
    """Returns the checkpoint with which a cascade model goes on where a plain one stopped.

    The study's audit has seen to it that the two configs differ in the cascade alone.

    Args:
        plain: a plain model's checkpoint; not changed.
        cascade_model: newly built; its own weights are those of the later stages.
        cascade_optimizer: newly built for it, by the same recipe as the plain one.
    """
    model: dict[str, Tensor] = {}
    copied, averaged = set(), set()
    for name, own in cascade_model.state_dict().items():
        origin = plain_name(name)
        model[name] = own if origin is None else plain["model"][origin]
        if model[name].shape != own.shape:  # one box regressor for each class
            model[name] = model[name].unflatten(0, (-1, BOX_SIZE)).mean(0)
            averaged.add(name)
        elif origin is not None:
            copied.add(name)
    logger.info(
        "Switched to cascade: %d tensors copied, %d averaged over classes, %d start anew",
        *(len(copied), len(averaged), len(model) - len(copied) - len(averaged)),
    )
    names = {id(parameter): name for name, parameter in cascade_model.named_parameters()}
    ordered = [names[id(p)] for group in cascade_optimizer.param_groups for p in group["params"]]
    before, own_groups = plain["optimizer"], cascade_optimizer.state_dict()["param_groups"]
    # An optimizer numbers its parameters by group; both models register theirs in the same order,
    # the later stages aside.
    origins = iter([number for group in before["param_groups"] for number in group["params"]])
    momentum = {}
    for number, name in enumerate(ordered):
        origin = None if plain_name(name) is None else next(origins)
        if name in copied and origin in before["state"]:
            momentum[number] = before["state"][origin]
    groups = [
        {**group, "params": own["params"]}
        for group, own in zip(before["param_groups"], own_groups, strict=True)
    ]
    optimizer = {**before, "state": momentum, "param_groups": groups}
    return {**plain, "model": model, "optimizer": optimizer}


def plain_name(name: str) -> str | None:
    """Returns what a cascade model's tensor is called in the plain model, None in later stages."""
    stage = _STAGE.match(name)
    if stage is None:
        return name
    return f"roi_heads.{stage[1]}.{stage[3]}" if stage[2] == "0" else None
