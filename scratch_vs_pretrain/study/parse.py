"""Reads a study file: safe, strict, and with a sentence for everything that is wrong."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from scratch_vs_pretrain.errors import UserError, nearest
from scratch_vs_pretrain.study.fields import absolute, read_model, sentence
from scratch_vs_pretrain.study.spec import OWNED_BY_DATA, OWNED_KEYS, SCRATCH, Arm, Preset, Study

MOST_BYTES = 1_000_000
DEEPEST = 50


def load_study(path: Path | str, weights: Mapping[str, str] | None = None) -> Study:
    """Reads a study file.

    Args:
        path: the file; paths in it are relative to its folder.
        weights: checkpoint paths or URIs by arm, in place of the file's; relative to the current
            folder.

    Raises:
        UserError: whatever is wrong with the file, in one sentence that names file and key.
    """
    file = Path(path)
    return parse_study(read_plain_yaml(file), file, weights or {})


def parse_study(content: Any, file: Path, weights: Mapping[str, str]) -> Study:
    """Returns the study that plain YAML content describes; see :func:`load_study`."""
    if content is None:
        raise UserError(f"{file}: the file is empty; it needs name, base, arms and schedules")
    study = read_model(Study, content, file, file=file)
    names = [arm.name for arm in study.arms]
    for name in weights:
        if name not in names:
            raise UserError(f"--weights {name}=...: {file} has no arm {name}{nearest(name, names)}")
    arms = tuple(replace(arm, schedules=arm.schedules or study.schedules) for arm in study.arms)
    for arm in arms:
        if not arm.schedules:
            raise UserError(
                f"{file}: arms.{arm.name}: has no schedules, and neither has the study; for "
                "example [2x]"
            )
    _refuse_set_twice(study)
    _check_tune(study)
    arms = tuple(_with_weights(study, arm, weights.get(arm.name)) for arm in arms)
    return replace(study, arms=arms, preset=_preset(study))


def _with_weights(study: Study, arm: Arm, given: str | None) -> Arm:
    if given is None:
        return arm
    if arm.init == SCRATCH:
        raise UserError(
            f"--weights {arm.name}={given}: {study.file} starts {arm.name} from random "
            "weights; name another arm"
        )
    try:
        return replace(arm, init=absolute(given, Path.cwd()))
    except ValidationError as error:
        raise UserError(sentence(error, {}, f"--weights {arm.name}=...")) from None


def _preset(study: Study) -> Preset | None:
    """Returns the one preset that study and arms name; an arm's is for every arm."""
    places = [("preset", study.preset)]
    places += [(f"arms.{arm.name}.preset", arm.preset) for arm in study.arms]
    named = [(key, preset) for key, preset in places if preset]
    for (one_key, one), (other_key, other) in itertools.pairwise(named):
        if one != other:
            raise UserError(
                f"{study.file}: {one_key}: is {one}, but {other_key} is {other}; pixels and "
                "strides must be alike in every arm, so keep one of them"
            )
    return named[0][1] if named else None


def _overrides(study: Study) -> dict[str, Mapping[str, Any]]:
    """Returns everything in the file that overrides config keys, by its place."""
    places: dict[str, Mapping[str, Any]] = {"overrides": study.overrides}
    places |= {f"arms.{arm.name}.overrides": arm.overrides for arm in study.arms}
    return places | {f"sizes.{n}.overrides": size.overrides for n, size in enumerate(study.sizes)}


def _keys_of_fields(study: Study) -> dict[str, str]:
    """Returns the config keys that follow from other fields of this study, and the field."""
    fields = dict.fromkeys(OWNED_BY_DATA, "data") if study.data else {}
    if study.evaluation.period is not None:
        fields["TEST.EVAL_PERIOD"] = "evaluation.period"
    if study.evaluation.at:
        fields["SVP.EVAL_ITERATIONS"] = "evaluation.at"
    return fields


def _refuse_set_twice(study: Study) -> None:
    fields = _keys_of_fields(study)
    for place, keys in _overrides(study).items():
        for key in fields.keys() & keys.keys():
            raise UserError(
                f"{study.file}: {place}.{key}: follows from {fields[key]}; remove one of them"
            )


def _check_tune(study: Study) -> None:
    if study.tune is None:
        return
    arms = [arm.name for arm in study.arms]
    if study.tune.on not in arms:
        known = nearest(study.tune.on, arms) or f"; known are {', '.join(arms)}"
        raise UserError(f"{study.file}: tune.on: no arm is named {study.tune.on}{known}")
    taken = {**OWNED_KEYS, **_keys_of_fields(study)}
    grid = study.tune.grid.keys()
    recipes = [
        f"sizes.{n}.overrides"
        for n, size in enumerate(study.sizes)
        if grid <= size.overrides.keys()
    ]
    if study.sizes and len(recipes) == len(study.sizes):
        raise UserError(f"{study.file}: tune: each of the sizes states its recipe; remove tune")
    for place, keys in _overrides(study).items():
        taken |= dict.fromkeys(keys if place not in recipes else (), place)
    for key in grid:
        if key in taken:
            raise UserError(
                f"{study.file}: tune.grid.{key}: is set by {taken[key]} already; remove one of them"
            )


def study_schema() -> dict[str, Any]:
    """Returns the JSON schema of study files; its descriptions are the docstrings."""
    schema = TypeAdapter(Study).json_schema()
    definitions = schema["$defs"]
    # Both have a short form.
    definitions["Schedule"]["required"] = ["iterations"]
    for name, short in (("Schedule", ["string"]), ("Size", ["string", "integer"])):
        definitions[name] = {"anyOf": [{"type": short}, definitions[name]]}
    return schema


def schema_markdown(schema: Mapping[str, Any]) -> str:
    """Returns the page docs/study_file.md."""
    parts = {"A study": schema, **schema["$defs"]}
    lines = [
        "# Study files",
        "",
        "A study file is plain YAML without tags, aliases or repeated keys; its paths start there.",
        "`svp schema > study.schema.json` writes its schema for editors; a first line such as",
        "`# yaml-language-server: $schema=study.schema.json` makes them complete and check keys.",
        "[One whole file](study_example.md); this page is `svp schema --format markdown`.",
    ]
    for name, part in parts.items():
        part = part.get("anyOf", [part])[-1]
        lines += ["", f"## {name}", "", part["description"], "", "| key | default | meaning |"]
        lines.append("|---|---|---|")
        for key, told in part["properties"].items():
            usual = (
                "required" if key in part.get("required", ()) else json.dumps(told.get("default"))
            )
            meaning = " ".join(told["description"].split())
            lines.append(f"| `{key}` | {usual} | {meaning} |")
    return "\n".join(lines) + "\n"


def _refused(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _PlainLoader(yaml.SafeLoader):
    """Plain YAML, where a repeated key is an error, and an alias, which can be made recursive.

    As in YAML 1.2, `on` and `off` are texts: the key `on` of a study's `tune` is no truth value.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused("aliases are not supported", event.start_mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise _refused("nested too deeply", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in getattr(node, "value", ()):
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key is not text", key.start_mark)
            if key.value in seen:
                raise _refused(f"{key.value} appears twice", key.start_mark)
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
