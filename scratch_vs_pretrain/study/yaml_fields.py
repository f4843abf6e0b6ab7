"""Plain YAML and its typed fields, with a sentence that names file and key for what is wrong."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scratch_vs_pretrain.config import nearest
from scratch_vs_pretrain.errors import UserError

# Folders are named by it.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


class _PlainLoader(yaml.SafeLoader):
    """Plain YAML, where a repeated key is an error, and an alias, which can be made recursive.

    As in YAML 1.2, `on` and `off` are texts: the key `on` of a study's `tune` is no truth value.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not supported", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in getattr(node, "value", ()):
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is not text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} appears twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_PlainLoader.yaml_implicit_resolvers = {
    first: rules
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if first not in ("o", "O")
}


def read_plain_yaml(file: Path) -> Any:
    """Returns a YAML file's content: mappings, lists and scalars, nothing executed.

    Raises:
        UserError: no such file, or no plain YAML; the message names the line.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{file}: not a text file ({error})") from None
    loader = _PlainLoader(text) if _is_readable(text) else None
    if loader is None:
        raise UserError(f"{file}: not a text file (it holds control characters)")
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not plain YAML ({_one_line(error)})") from None
    except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # PyYAML lets exceptions of its scalar constructors out, for 2020-13-45 or `!!int ""`.
        line = loader.get_mark().line + 1
        raise UserError(f"{file}: not plain YAML before line {line} ({error})") from None
    except RecursionError:
        raise UserError(f"{file}: not plain YAML (nested too deeply)") from None


def _is_readable(text: str) -> bool:
    return yaml.reader.Reader.NON_PRINTABLE.search(text) is None


@dataclass(frozen=True)
class Place:
    """A key of a file, for messages."""

    file: Path
    key: str = ""

    def __truediv__(self, key: str) -> Place:
        return Place(self.file, f"{self.key}.{key}" if self.key else key)

    def __str__(self) -> str:
        return f"{self.file}: {self.key}" if self.key else str(self.file)

    def error(self, text: str) -> UserError:
        """Returns the error whose sentence begins with this place."""
        return UserError(f"{self}: {text}")


def shorten(value: Any) -> str:
    """Returns a value as a message shows it."""
    return reprlib.repr(value)


def read_mapping(
    value: Any, place: Place, known: Iterable[str] | None = None, required: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns a mapping with text keys, all of them known (None: any) and none required missing."""
    if not isinstance(value, dict):
        raise place.error(f"must be a mapping of keys to values, not {shorten(value)}")
    for key in value:
        if not isinstance(key, str):
            raise place.error(f"key {shorten(key)} is not text; put it in quotes")
        if known is not None and key not in known:
            expected = nearest(key, known) or f"; known are {', '.join(known)}"
            raise place.error(f"unknown key {(place / key).key}{expected}")
    for key in required:
        if key not in value:
            raise place.error(f"{(place / key).key} is missing")
    return value


def read_list(value: Any, place: Place, least: int = 0) -> list[Any]:
    """Returns a list of at least so many items."""
    if not isinstance(value, list):
        raise place.error(f"must be a list in brackets, not {shorten(value)}")
    if len(value) < least:
        raise place.error("the list is empty")
    return value


def read_text(value: Any, place: Place, empty: bool = False) -> str:
    """Returns a line of text."""
    if not isinstance(value, str):
        raise place.error(f"must be text, not {shorten(value)}; put it in quotes")
    if not (value or empty):
        raise place.error("must not be empty")
    if not value.isprintable():
        raise place.error(f"{shorten(value)} holds line breaks or control characters")
    return value


def read_name(value: Any, place: Place) -> str:
    """Returns a name that is safe as a folder's."""
    name = read_text(value, place)
    if not _NAME.fullmatch(name):
        raise place.error(
            f"{shorten(name)} cannot name a folder; use at most 100 letters, digits, dots, dashes "
            "and underscores, a letter or digit first"
        )
    return name


def read_integer(value: Any, place: Place, low: int, high: int) -> int:
    """Returns a whole number in [low, high]."""
    if type(value) is not int:
        raise place.error(f"must be a whole number, not {shorten(value)}")
    if not low <= value <= high:
        raise place.error(f"must be from {low:,} to {high:,}, not {shorten(value)}")
    return value


def read_integers(value: Any, place: Place, low: int, high: int, least: int = 0) -> tuple[int, ...]:
    """Returns distinct whole numbers in [low, high]."""
    items = read_list(value, place, least)
    numbers = [read_integer(item, place / str(i), low, high) for i, item in enumerate(items)]
    refuse_repeated(numbers, place)
    return tuple(numbers)


def read_texts(value: Any, place: Place) -> tuple[str, ...]:
    """Returns distinct lines of text."""
    texts = [read_text(item, place / str(i)) for i, item in enumerate(read_list(value, place))]
    refuse_repeated(texts, place)
    return tuple(texts)


def read_file(value: Any, place: Place, folder: Path) -> Path:
    """Returns the absolute path of a file that is there; `folder` is what it is relative to."""
    path = absolute(read_text(value, place), folder)
    if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
        raise place.error(f"{path}: no such file")
    return Path(path)


def read_folder(value: Any, place: Place, folder: Path) -> Path:
    """Returns the absolute path of a folder that is there; `folder` is what it is relative to."""
    path = absolute(read_text(value, place), folder)
    if not os.path.isdir(path):
        raise place.error(f"{path}: no such folder")
    return Path(path)


def absolute(text: str, folder: Path) -> str:
    """Returns an absolute path, or a URI as it is."""
    if is_uri(text):
        return text
    try:
        return str((folder / Path(text).expanduser()).resolve())
    except RuntimeError:  # no such user, or a loop of links
        return text


def is_uri(text: str) -> bool:
    """Tells a URI from a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


def refuse_repeated(items: Sequence[Any], place: Place) -> None:
    """Raises UserError if an item appears twice."""
    for number, item in enumerate(items):
        if item in items[:number]:
            raise place.error(f"{item} appears twice")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
