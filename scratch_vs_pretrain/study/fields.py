"""A study file as plain YAML, and its fields: strict, and with a sentence for what is wrong.

A study's classes are pydantic's; what does not fit them is told as ``file: key: what is wrong, and
what to write``.
"""

import dataclasses
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import ArgsKwargs, PydanticCustomError

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.text import nearest

MOST_ITERATIONS = 10**9
MOST_BYTES = 1_000_000
DEEPEST = 50

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)
# Marks the attributes that no file states.
NOT_STATED = SkipJsonSchema()

# Sentences for pydantic's kinds of errors.
_SENTENCES = {
    "int_type": "must be a whole number, not {input}",
    "float_type": "must be a number, not {input}",
    "greater_than": "must be a number above {gt:g}, not {input}",
    "greater_than_equal": "must be at least {ge:,}, not {input}",
    "less_than_equal": "must be at most {le:,}, not {input}",
    "string_type": "must be text, not {input}; put it in quotes",
    "string_unicode": "is not UTF-8, which run folders are; rename it",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list in brackets, such as [0, 1] of numbers, not {input}",
    "literal_error": "unknown {last} {input}; known are {expected}",
}


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
        given = value if isinstance(value, Stated) else Stated(value, {})
        fields = cls.__pydantic_fields__  # type: ignore[attr-defined]
        stated = {key: one for key, one in fields.items() if NOT_STATED not in one.metadata}
        content = read_mapping(given.content)
        for key in content:
            if key in cls.removed:
                raise wrong(f"{{key}} {cls.removed[key]}", key=key)
            if key not in stated:
                expected = nearest(key, stated) or f"; known are {', '.join(stated)}"
                raise wrong(f"unknown key {{key}}{expected}", key=key)
            if content[key] is None and not stated[key].is_required():
                raise wrong("has no value; give it one, or remove the line", key)
        for key, field in stated.items():
            if field.is_required() and key not in content:
                raise wrong("{key} is missing", key=key)
        return {**content, **given.known}


def sentence(error: ValidationError, content: Any, file: Path | str) -> str:
    """Returns what is wrong with a file's content, or with another origin's."""
    first = error.errors(include_url=False)[0]
    said = first.get("ctx", {})
    text, here = said.get("text", first["msg"]), content
    keys: list[str] = []
    for part in (*first["loc"], *said.get("at", ())):
        if keys == ["arms"] and isinstance(part, int):  # a mapping in the file
            part = list(here)[part]
        try:
            here = here[part]
        except (LookupError, TypeError):
            continue  # pydantic's name for a choice
        keys.append(str(part))
    if first["type"] in _SENTENCES:
        said = {**said, "expected": said.get("expected", "").replace("'", "").replace(" or ", ", ")}
        last, given = keys[-1] if keys else "", shorten(first["input"])
        text = _SENTENCES[first["type"]].format(last=last, input=given, **said)
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


def refuse_nan(value: Any, key: str) -> None:
    """Refuses what equals nothing: the audit would see arms differ in what they share."""
    if any(part != part for part in (value if isinstance(value, list) else [value])):
        raise wrong("is not a number (nan); write one", key)


def printable(text: str) -> str:
    """Returns a line of text."""
    if not text.isprintable():
        raise wrong(f"{shorten(text)} holds line breaks or control characters")
    return text


def matching(pattern: str, otherwise: str) -> AfterValidator:
    """Refuses what is no match as ``'it' {otherwise}``."""

    def read(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise wrong(f"{shorten(text)} {otherwise}")
        return text

    return AfterValidator(read)


def _refuse_empty(value: Any) -> Any:
    if value == []:
        raise wrong("the list is empty")
    return value


def refuse_repeated(items: tuple[Any, ...], *at: str) -> tuple[Any, ...]:
    """Returns the items, none of which, or no name of which, may appear twice."""
    names = [getattr(item, "name", item) for item in items]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise wrong(f"{name} appears twice", *at)
    return items


def absolute(text: str, folder: Path) -> str:
    """Returns an absolute path, or a URI as it is."""
    if is_uri(text):
        return text
    try:
        return str((folder / Path(text).expanduser()).resolve())
    except (RuntimeError, OSError, ValueError):  # no such user, a loop of links, too long a name
        return text


def encodable(path: str) -> str:
    """Returns a path that run folders can tell."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise wrong(f"{shorten(path)} is not UTF-8, which run folders are; rename it") from None
    return path


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
        if not isinstance(value, str) or not value:
            raise wrong(f"must be text, not {shorten(value)}; put it in quotes")
        path = encodable(absolute(printable(value), folder_of(info)))
        if not is_there(path):  # unlike Path's methods, False for a name that is too long
            raise wrong(f"{path}: no such {kind}")
        return Path(path)

    return BeforeValidator(read)


Line = Annotated[str, Field(strict=True), AfterValidator(printable)]  # may be empty
Text = Annotated[str, Field(strict=True, min_length=1), AfterValidator(printable)]
Name = Annotated[
    Text,
    matching(
        "[A-Za-z0-9][A-Za-z0-9._-]{0,99}",
        "cannot name a folder; use at most 100 letters, digits, dots, dashes and underscores, "
        "a letter or digit first",
    ),
]
ExistingFile = Annotated[Path, _existing("file", os.path.isfile)]
ExistingFolder = Annotated[Path, _existing("folder", os.path.isdir)]
Iterations = Annotated[int, Field(strict=True, ge=1, le=MOST_ITERATIONS)]
NotEmpty = BeforeValidator(_refuse_empty)
Distinct = AfterValidator(refuse_repeated)


_ODD_NUMBER = re.compile(r"\S+:(int|float) [-+]?(0[0-7_]+|[0-9_]+(:[0-9_]+)+(\.[0-9_]*)?)")


class _PlainLoader(yaml.SafeLoader):
    """Plain YAML, where a repeated key is an error, a tag, and an alias, which can be recursive.

    As in YAML 1.2, `on` and `off` are texts: the key `on` of a study's `tune` is no truth value.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        place: Any = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "aliases are not supported", place)
        if tag := getattr(self.peek_event(), "tag", None):
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.MarkedYAMLError(None, None, f"{tag}: tags are not supported", place)
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(None, None, "nested too deeply", place)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.ScalarNode) and _ODD_NUMBER.fullmatch(f"{node.tag} {node.value}"):
            # YAML 1.1's numbers of base 8 and 60, which are none in YAML 1.2.
            number = self.construct_object(node)
            told = f"{node.value} means {number}; write that, or what you mean, as a plain number"
            raise yaml.MarkedYAMLError(None, None, told, place)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in getattr(node, "value", ()):
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "a key is not text", key.start_mark)
            if key.tag.endswith(":merge"):
                told = "<< is not supported; write out the keys that it would add"
                raise yaml.MarkedYAMLError(None, None, told, key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"{key.value} appears twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_PlainLoader.yaml_implicit_resolvers = {
    first: rules
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if first not in ("o", "O")
}


def read_plain_yaml(file: Path) -> Any:
    """Returns a YAML file's content: mappings, lists and scalars, nothing executed."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
        text = data.decode()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{file}: not a text file ({error})") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{file}: is larger than {MOST_BYTES:,} bytes, which no study file is")
    if yaml.reader.Reader.NON_PRINTABLE.search(text):
        raise UserError(f"{file}: not a text file (it holds control characters)")
    loader = _PlainLoader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not plain YAML ({' '.join(str(error).split())})") from None
    except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # PyYAML lets exceptions of its scalar constructors out, for 2020-13-45 or `!!int ""`.
        line = loader.get_mark().line + 1
        raise UserError(f"{file}: not plain YAML before line {line} ({error})") from None
    except RecursionError:  # flow collections recurse in the parser itself
        raise UserError(f"{file}: not plain YAML (nested too deeply)") from None
