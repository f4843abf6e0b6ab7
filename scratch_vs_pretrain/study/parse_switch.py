"""Reads a study's ``switch``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.study.spec import Switch
from scratch_vs_pretrain.study.yaml_fields import Place, read_integer, read_mapping, read_text

MOST_ITERATIONS = 10**9
KEYS = ("config", "last")


def read_switch(value: Any, place: Place) -> Switch:
    """Returns the switch that ``{config: FILE, last: 270000}`` means.

    Raises:
        UserError: whatever is wrong, in one sentence that names file and key.
    """
    fields = read_mapping(value, place, KEYS, required=KEYS)
    config = os.path.abspath(place.file.parent / read_text(fields["config"], place / "config"))
    if not os.path.isfile(config):
        raise (place / "config").error(f"{config}: no such file")
    return Switch(Path(config), read_integer(fields["last"], place / "last", 1, MOST_ITERATIONS))
