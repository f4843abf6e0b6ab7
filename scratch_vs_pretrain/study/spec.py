"""A study file, read as frozen, validated objects: arms, sizes, seeds, and the runs they make."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study import fields, sections
from scratch_vs_pretrain.text import nearest

SCRATCH = "scratch"
REQUIRED = "required"
FULL = "full"

# Config keys that follow from other fields of the study, and the field to use.
OWNED_KEYS = {
    "MODEL.WEIGHTS": "the arm's init",
    "SOLVER.MAX_ITER": "schedules",
    "SOLVER.STEPS": "schedules",
    "SEED": "seeds",
    "OUTPUT_DIR": "the --output option",
    "SVP.DATASETS": "data",
    "SVP.VOC_DATASETS": "data",
    "SVP.IMPORTS": "imports",
}
# And those that follow from `data`, where the study has it.
OWNED_BY_DATA = (
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.RETINANET.NUM_CLASSES",
)


def _read_overrides(value: Any) -> dict[str, Any]:
    overrides = fields.read_mapping(value)
    for key, item in overrides.items():
        if key in OWNED_KEYS:
            raise fields.wrong(f"cannot be overridden; use {OWNED_KEYS[key]}", key)
        if isinstance(item, dict):
            raise fields.wrong(f"write dotted keys, such as {key}.{next(iter(item), 'KEY')}", key)
        fields.refuse_nan(item, key)
    return overrides


def _read_init(init: str, info: ValidationInfo) -> str:
    words = (SCRATCH, REQUIRED)
    near = nearest(init.lower(), words) if init not in words and init.isalpha() else ""
    if near and not (fields.folder_of(info) / init).exists():
        raise fields.wrong(f"{init} is no file{near}")
    if init.startswith(RUN_SCHEME) and not _RUN.fullmatch(init):
        raise fields.wrong(
            f"{init} names no run; write run://STUDY/ARM/SCHEDULE/seed for the run of each "
            "seed, or run://STUDY/ARM/SCHEDULE/seed0 for one of them"
        )
    if init in (SCRATCH, REQUIRED) or info.context is None:
        return init
    return fields.encodable(fields.absolute(init, fields.folder_of(info)))


def _read_base(value: Any) -> Any:
    if isinstance(value, str) and value.endswith(".py"):
        raise fields.wrong(
            f"{value} is a LazyConfig, which is Python and would be executed; write the same model "
            "as a YAML config, and register its parts in a module that imports names"
        )
    return value


def _read_arms(value: Any) -> tuple[Any, ...]:
    """Gives each arm of a mapping its name."""
    if isinstance(value, tuple):
        return value
    if not fields.read_mapping(value):
        raise fields.wrong("names no arm; for example scratch: {init: scratch}")
    return tuple(fields.Stated(arm, {"name": name}) for name, arm in value.items())


def _read_size(value: Any) -> str:
    name = str(value) if type(value) is int and 0 < value < 10**12 else value
    if name != FULL and not (isinstance(name, str) and _SIZE.fullmatch(name)):
        raise fields.wrong(
            f"{fields.shorten(value)} is no size; write a number of images (300), of thousands of "
            f"them (3.5k), a percentage (10pct), or {FULL}"
        )
    return name


RUN_SCHEME = "run://"
_RUN = re.compile(r"run://[^/]+/[^/]+/[^/]+/seed(?P<seed>0|[1-9][0-9]{0,9})?", re.ASCII)
_SIZE = re.compile(r"(?!0+(\.0+)?(k|pct)?$)[0-9]{1,12}(\.[0-9]{1,12})?(k|pct)?", re.ASCII)

Overrides = Annotated[dict[str, Any], BeforeValidator(_read_overrides)]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)]
Schedules = Annotated[tuple[sections.Schedule, ...], fields.NotEmpty, fields.Distinct]
Module = Annotated[
    fields.Text,
    fields.matching(
        r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*",
        "is no module; write the dotted name of one that is installed or on PYTHONPATH, such as "
        "my_project.parts, and no path",
    ),
]
# Of :data:`scratch_vs_pretrain.study.resolve.PRESETS`.
Preset = Literal["detectron2", "detectron2-gn", "torchvision"]


@dataclass(frozen=True, config=fields.STRICT)
class Size(fields.Section):
    """One size of the training data, with what its recipe has of its own."""

    images: Annotated[str, BeforeValidator(_read_size)]
    """how many (300), in thousands (3.5k), a percentage (10pct), or full: all."""
    overrides: Overrides = field(default_factory=dict)
    """config keys of this size alone."""
    schedules: Schedules = ()
    """in place of the study's and the arms'."""
    tuned_on: Annotated[str | None, fields.NOT_STATED] = None
    """as the study's."""

    @property
    def name(self) -> str:
        """Names it among others."""
        return self.images

    @model_validator(mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        """Reads ``1k`` or ``{images: 1k, ...}``."""
        return value if isinstance(value, (ArgsKwargs, dict, cls)) else {"images": value}


@dataclass(frozen=True, config=fields.STRICT)
class Arm(fields.Section):
    """One side of the comparison."""

    name: Annotated[fields.Name, fields.NOT_STATED]
    init: Annotated[fields.Text, AfterValidator(_read_init)]
    """the initial weights: scratch (random ones), a checkpoint's path or URI,
    run://STUDY/ARM/SCHEDULE/seed (what another run of the output folder ended with), or required
    (given with --weights ARM=PATH)."""
    schedules: Schedules = ()
    """in place of the study's."""
    overrides: Overrides = field(default_factory=dict)
    """config keys of this arm alone; allow_differences has to name them."""
    preset: Preset | None = None
    """as the study's, for every arm."""
    load: Literal["backbone", "detector"] | None = None
    """what to take from the checkpoint: its backbone, the default, or all that fits of a
    detector."""
    freeze: Literal["backbone"] | None = None
    """what keeps its initial weights; only where they are not random."""

    @property
    def weights(self) -> str:
        """What MODEL.WEIGHTS is to be."""
        return "" if self.init == SCRATCH else self.init


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: an arm, a schedule, a seed."""

    study: str
    arm: Arm
    schedule: sections.Schedule
    seed: int
    size: str | None = None

    def folder(self, output: Path) -> RunFolder:
        """Returns the run's folder below `output`."""
        study = output / self.study / (f"images-{self.size}" if self.size else "")
        return RunFolder(study / self.arm.name / self.schedule.name / f"seed{self.seed}")


@dataclass(frozen=True, config=fields.STRICT)
class Study(fields.Section):
    """One question: arms that are to differ in their initial weights and their schedules alone."""

    removed: ClassVar[Mapping[str, str]] = {
        "conclusions": (
            "was replaced in version 0.2; write answer: {margin: 0.5}, and for fewer than three "
            "seeds noise: {sd: 0.2, because: ...}"
        )
    }

    name: fields.Name
    """names the output folder."""
    file: Annotated[Path, fields.NOT_STATED]
    """where it was read; messages name it."""
    base: Annotated[fields.ExistingFile, BeforeValidator(_read_base)]
    """the Detectron2 config (YAML) that every arm starts from."""
    schedules: Schedules = Field(default=(), kw_only=True)
    """of every arm that states none: 2x (twice 90,000 iterations of 16 images, scaled with the
    batch size), 600it, or {iterations: 600}."""
    arms: Annotated[
        tuple[Arm, ...], BeforeValidator(_read_arms, json_schema_input_type=dict[str, Arm])
    ]
    """arms by name, in the order of tables."""
    seeds: Annotated[tuple[Seed, ...], fields.NotEmpty, fields.Distinct] = (0,)
    """one run of every arm and schedule for each."""
    description: Annotated[
        fields.Line,
        BeforeValidator(lambda text: " ".join(text.split()) if isinstance(text, str) else text),
    ] = ""
    """for people."""
    preset: Preset | None = None
    """what the pixels of the pre-trained backbone looked like and where its stages halve the
    resolution, for every arm: INPUT.FORMAT, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and
    MODEL.RESNETS.STRIDE_IN_1X1."""
    overrides: Overrides = field(default_factory=dict)
    """config keys, for every arm."""
    evaluation: sections.Evaluation = sections.Evaluation()
    """when to evaluate."""
    data: sections.Data | None = None
    """your own data, in place of the config's; classes and heads follow."""
    allow_differences: Annotated[tuple[fields.Text, ...], fields.Distinct] = ()
    """config keys that arms may differ in; every table names them."""
    admit: Annotated[tuple[fields.Text, ...], fields.Distinct] = ()
    """checks to switch off, for a study of mistakes: frozen-stages-from-scratch,
    frozen-norm-from-scratch, small-batch-norm, no-warm-up; every table names them."""
    switch: sections.Switch | None = None
    """what every run goes on with at its end."""
    tune: sections.Tune | None = None
    """the search that has to come first; with sizes, one for each whose overrides do not set its
    keys."""
    imports: Annotated[tuple[Module, ...], fields.Distinct] = ()
    """your own modules, installed or on PYTHONPATH: imported in every process before configs are
    read, for what they register with Detectron2."""
    sizes: Annotated[tuple[Size, ...], fields.Distinct] = ()
    """nested subsets of the training data; every arm trains on each."""
    answer: sections.Answer | None = None
    """what counts as an answer."""
    noise: sections.Noise | None = None
    """assumed where seeds are too few to estimate it."""
    tuned_on: Annotated[str | None, fields.NOT_STATED] = None
    """the arm on which a search found the recipe, whose winner `overrides` holds."""
    size: Annotated[str | None, fields.NOT_STATED] = None
    """of the training data, in a study of one of another's `sizes`."""
    sharing: Annotated[bool, fields.NOT_STATED] = True
    """whether schedules of one arm and seed share their trunk."""

    def run(self, arm: Arm, schedule: sections.Schedule, seed: int) -> Run:
        """Returns one run."""
        return Run(self.name, arm, schedule, seed, self.size)

    def runs(self) -> tuple[Run, ...]:
        """Returns every run, by size, arm, schedule and seed."""
        return tuple(
            one.run(arm, schedule, seed)
            for one in self.by_size()
            for arm in one.arms
            for schedule in arm.schedules
            for seed in one.seeds
        )

    def by_size(self) -> tuple[Study, ...]:
        """Returns the study of each of the sizes, smallest first as they are stated, or itself."""
        if not self.sizes:
            return (self,)
        sizes = tuple(
            replace(
                self,
                sizes=(),
                size=size.name,
                tune=None,
                tuned_on=size.tuned_on,
                overrides={**self.overrides, **size.overrides},
                arms=tuple(
                    replace(arm, schedules=size.schedules or arm.schedules) for arm in self.arms
                ),
            )
            for size in self.sizes
        )
        return vars(self).setdefault("_by_size", sizes)  # one each, which keeps its merged configs


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
    return parse_study(fields.read_plain_yaml(file), file, weights or {})


def parse_study(content: Any, file: Path, weights: Mapping[str, str]) -> Study:
    """Returns the study that plain YAML content describes; see :func:`load_study`."""
    if content is None:
        raise UserError(f"{file}: the file is empty; it needs name, base, arms and schedules")
    try:
        study = TypeAdapter(Study).validate_python(
            fields.Stated(content, {"file": file}), context={"folder": file.parent}
        )
    except ValidationError as error:
        raise UserError(fields.sentence(error, content, file)) from None
    names = [arm.name for arm in study.arms]
    for name in weights:
        if name not in names:
            raise UserError(f"--weights {name}=...: {file} has no arm {name}{nearest(name, names)}")
    arms = tuple(_completed(study, arm, weights.get(arm.name)) for arm in study.arms)
    _check_keys(study)
    return replace(study, arms=arms, preset=_preset(study))


def _completed(study: Study, arm: Arm, given: str | None) -> Arm:
    """Returns an arm with the study's schedules if it states none, and with the weights given."""
    schedules = arm.schedules or study.schedules
    if not schedules:
        raise UserError(
            f"{study.file}: arms.{arm.name}: has no schedules, and neither has the study; for "
            "example [2x]"
        )
    if given is not None and arm.init == SCRATCH:
        raise UserError(
            f"--weights {arm.name}={given}: {study.file} starts {arm.name} from random "
            "weights; name another arm"
        )
    init = arm.init if given is None else fields.absolute(given, Path.cwd())
    try:
        return replace(arm, schedules=schedules, init=init)
    except ValidationError as error:
        raise UserError(fields.sentence(error, {}, f"--weights {arm.name}=...")) from None


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


def _check_keys(study: Study) -> None:
    """Refuses config keys that two places of the file set, and a search that cannot be made."""
    owned = dict.fromkeys(OWNED_BY_DATA, "data") if study.data else {}
    if study.evaluation.period is not None:
        owned["TEST.EVAL_PERIOD"] = "evaluation.period"
    if study.evaluation.at:
        owned["SVP.EVAL_ITERATIONS"] = "evaluation.at"
    if study.admit:
        owned["SVP.ADMIT"] = "admit"
    places: dict[str, Mapping[str, Any]] = {"overrides": study.overrides}
    places |= {f"arms.{arm.name}.overrides": arm.overrides for arm in study.arms}
    sizes = {f"sizes.{n}.overrides": size.overrides for n, size in enumerate(study.sizes)}
    _refuse_twice(study, places | sizes, owned)
    for arm in study.arms:
        stated = {"SVP.LOAD": ("load", arm.load), "SVP.FREEZE": ("freeze", arm.freeze)}
        own = {key: f"arms.{arm.name}.{name}" for key, (name, value) in stated.items() if value}
        mine = f"arms.{arm.name}.overrides"
        _refuse_twice(study, {"overrides": study.overrides, mine: arm.overrides}, own)
        # An arm's overrides and a size's are both for some of the runs alone.
        _refuse_twice(study, sizes, dict.fromkeys(arm.overrides, mine) | own)
        owned |= own
    if study.tune:
        _check_tune(study, study.tune, {**OWNED_KEYS, **owned}, places, sizes)


def _refuse_twice(
    study: Study, places: Mapping[str, Mapping[str, Any]], owned: Mapping[str, str]
) -> None:
    """Refuses config keys that these places set, and a field that owns them."""
    for place, keys in places.items():
        for key in owned.keys() & keys.keys():
            raise UserError(
                f"{study.file}: {place}.{key}: follows from {owned[key]}; remove one of them"
            )


def _check_tune(
    study: Study,
    tune: sections.Tune,
    taken: dict[str, str],
    places: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, Mapping[str, Any]],
) -> None:
    """Refuses a search on no arm, for no size, or of config keys that are set elsewhere.

    Args:
        study: whose search it is.
        tune: the search.
        taken: config keys that other fields set, and which.
        places: what the study and its arms override, by the place in the file.
        sizes: and what its sizes do.
    """
    arms = [arm.name for arm in study.arms]
    if tune.on not in arms:
        known = nearest(tune.on, arms) or f"; known are {', '.join(arms)}"
        raise UserError(f"{study.file}: tune.on: no arm is named {tune.on}{known}")
    grid = tune.grid.keys()
    # A size that sets them all states its recipe, and is not searched.
    searched = {place: keys for place, keys in sizes.items() if not grid <= keys.keys()}
    if sizes and not searched:
        raise UserError(f"{study.file}: tune: each of the sizes states its recipe; remove tune")
    for place, keys in {**places, **searched}.items():
        taken |= dict.fromkeys(keys, place)
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
        "A study file is plain YAML without tags, aliases, merge keys (`<<`) or repeated keys, and",
        "without YAML 1.1's numbers of base 8 and 60 (010, 1:30); its paths start there.",
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
