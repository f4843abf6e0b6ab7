"""Checked access to the fields of a JSON object that somebody else wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.errors import UserError

EXPECTED = {
    int: "an integer",
    float: "a number",
    str: "text",
    dict: "an object",
    list: "a list",
}
REQUIRED: Any = object()


def field(
    content: Mapping[str, Any], key: str, kind: type, file: Path, default: Any = REQUIRED
) -> Any:
    """Returns ``content[key]``; where it is missing or null, `default` if one is given.

    Raises:
        UserError: missing without a default, or of another kind; names the file and the key.
    """
    value = content.get(key)
    if value is None and default is not REQUIRED:
        return default
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise UserError(f"{file}: {key!r} is {value!r:.60}, {EXPECTED[kind]} is expected")
    return value
