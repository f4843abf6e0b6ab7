"""The fields of a study file: strict, and with a sentence for what is wrong.

A study's classes are pydantic's; what does not fit them is told as ``file: key: what is wrong, and
what to write``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import ArgsKwargs, PydanticCustomError, core_schema

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.text import nearest

MOST_ITERATIONS = 10**9

STRICT = ConfigDict(extra="forbid")
# Marks the attributes that no file states.
NOT_STATED = SkipJsonSchema()

# Folders are named by it.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_Model = TypeVar("_Model")


@dataclasses.dataclass(frozen=True)
class Stated:
    """What a file states of a model, and the attributes that the model has from elsewhere."""

    content: Any
    known: Mapping[str, Any]


@dataclass(frozen=True, config=STRICT)
class Section:
    """A mapping of a file whose keys are this class's attributes, all of them known."""

    # Keys that older versions had, and what to do without them.
    removed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, (ArgsKwargs, cls)):
            return value
        content, known = value, {}
        if isinstance(value, Stated):
            content, known = value.content, dict(value.known)
        stated = {
            field.alias or name: field.is_required()
            for name, field in fields_of(cls).items()
            if NOT_STATED not in field.metadata
        }
        for key in read_mapping(content):
            if key in cls.removed:
                raise wrong(f"{{key}} {cls.removed[key]}", key=key)
            if key not in stated:
                expected = nearest(key, stated) or f"; known are {', '.join(stated)}"
                raise wrong(f"unknown key {{key}}{expected}", key=key)
            if content[key] is None and not stated[key]:
                raise wrong("has no value; give it one, or remove the line", key)
        for key, required in stated.items():
            if required and key not in content and key not in known:
                raise wrong("{key} is missing", key=key)
        return {**content, **known}


def fields_of(model: type) -> Mapping[str, FieldInfo]:
    """Returns the attributes of a :class:`Section` by name."""
    return model.__pydantic_fields__  # type: ignore[attr-defined]


def read_model(model: type[_Model], content: Any, read: Path, **known: Any) -> _Model:
    """Returns the model that a file's content describes; paths in it are relative to the file.

    Args:
        model: a :class:`Section`.
        content: plain YAML.
        read: the file where it was read.
        known: attributes that no file states.

    Raises:
        UserError: whatever is wrong first, in one sentence that names file and key.
    """
    try:
        return TypeAdapter(model).validate_python(
            Stated(content, known), context={"folder": read.parent}
        )
    except ValidationError as error:
        raise UserError(_sentence(error, content, read)) from None


def _sentence(error: ValidationError, content: Any, file: Path) -> str:
    first = error.errors(include_url=False)[0]
    said = first.get("ctx", {})
    text, here = said.get("text", first["msg"]), content
    keys: list[str] = []
    for part in (*first["loc"], *said.get("at", ())):
        if keys == ["arms"] and isinstance(part, int):  # a mapping in the file
            part = list(here)[part]
        if keys[:1] == ["arms"] and part == "schedules" and part not in here:
            keys, here = [], content  # the study's, for every arm that states none
        try:
            here = here[part]
        except (LookupError, TypeError):
            continue  # pydantic's name for a choice
        keys.append(str(part))
    if first["type"] == "literal_error":
        known = said["expected"].replace("'", "").replace(" or ", ", ")
        text = f"unknown {keys[-1]} {shorten(first['input'])}; known are {known}"
    text = text.replace("{key}", ".".join([*keys, str(said.get("key", ""))]))
    return ": ".join([str(file), *([".".join(keys)] if keys else ()), text])


def wrong(text: str, *at: str, key: str = "") -> PydanticCustomError:
    """Returns what a validator raises.

    Args:
        text: the sentence behind file and place; ``{key}`` stands for the whole of `key`.
        at: where, below the validated value.
        key: of the validated value.
    """
    return PydanticCustomError("wrong", "{text}", {"text": text, "at": at, "key": key})


def shorten(value: Any) -> str:
    """Returns a value as a message shows it."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return "a number of thousands of digits"


def read_mapping(value: Any) -> dict[str, Any]:
    """Returns a mapping with text keys."""
    if not isinstance(value, dict):
        raise wrong(f"must be a mapping of keys to values, not {shorten(value)}")
    for key in value:
        if not isinstance(key, str):
            raise wrong(f"key {shorten(key)} is not text; put it in quotes")
    return value


def read_text(value: Any, empty: bool = False) -> str:
    """Returns a line of text."""
    if not isinstance(value, str):
        raise wrong(f"must be text, not {shorten(value)}; put it in quotes")
    if not (value or empty):
        raise wrong("must not be empty")
    if not value.isprintable():
        raise wrong(f"{shorten(value)} holds line breaks or control characters")
    return value


def read_name(value: Any) -> str:
    """Returns a name that is safe as a folder's."""
    name = read_text(value)
    if not _NAME.fullmatch(name):
        raise wrong(
            f"{shorten(name)} cannot name a folder; use at most 100 letters, digits, dots, dashes "
            "and underscores, a letter or digit first"
        )
    return name


def refuse_repeated(items: tuple[Any, ...], *at: str) -> tuple[Any, ...]:
    """Returns the items, none of which may appear twice."""
    for number, item in enumerate(items):
        if item in items[:number]:
            raise wrong(f"{getattr(item, 'name', item)} appears twice", *at)
    return items


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number in [low, high]."""

    low: int
    high: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        bounded = core_schema.int_schema(ge=self.low, le=self.high)
        return core_schema.no_info_before_validator_function(self.read, bounded)

    def read(self, value: Any) -> int:
        if type(value) is not int:
            raise wrong(f"must be a whole number, not {shorten(value)}")
        if not self.low <= value <= self.high:
            raise wrong(f"must be from {self.low:,} to {self.high:,}, not {shorten(value)}")
        return value


@dataclasses.dataclass(frozen=True)
class Real:
    """A number above `above` and at most `most`."""

    above: float
    most: float

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        bounded = core_schema.float_schema(gt=self.above, le=self.most)
        return core_schema.no_info_before_validator_function(self.read, bounded)

    def read(self, value: Any) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not self.above < value <= self.most or math.isnan(value):
            raise wrong(
                f"must be a number above {self.above:g} and at most {self.most:g}, not "
                f"{shorten(value)}"
            )
        return float(value)


@dataclasses.dataclass(frozen=True)
class Listed:
    """A list of at least so many distinct items."""

    least: int = 0

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        inner = core_schema.no_info_before_validator_function(self.read, handler(source))
        return core_schema.no_info_after_validator_function(refuse_repeated, inner)

    def read(self, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise wrong(f"must be a list in brackets, not {shorten(value)}")
        if isinstance(value, list) and len(value) < self.least:
            raise wrong("the list is empty")
        return tuple(value)


def absolute(text: str, folder: Path) -> str:
    """Returns an absolute path, or a URI as it is."""
    if is_uri(text):
        return text
    try:
        return str((folder / Path(text).expanduser()).resolve())
    except (RuntimeError, OSError, ValueError):  # no such user, a loop of links, too long a name
        return text


def is_uri(text: str) -> bool:
    """Tells a URI from a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


def folder_of(info: ValidationInfo) -> Path:
    """Returns what paths of the file that is read are relative to."""
    return Path(info.context["folder"]) if info.context else Path.cwd()


def _existing(kind: str, is_there: Callable[[str], bool]) -> BeforeValidator:
    def read(value: Any, info: ValidationInfo) -> Path:
        if isinstance(value, Path):
            return value
        path = absolute(read_text(value), folder_of(info))
        if not is_there(path):  # unlike Path's methods, False for a name that is too long
            raise wrong(f"{path}: no such {kind}")
        return Path(path)

    return BeforeValidator(read)


Text = Annotated[str, BeforeValidator(read_text)]
Name = Annotated[str, BeforeValidator(read_name)]
ExistingFile = Annotated[Path, _existing("file", os.path.isfile)]
ExistingFolder = Annotated[Path, _existing("folder", os.path.isdir)]
Iterations = Annotated[int, Whole(1, MOST_ITERATIONS)]
