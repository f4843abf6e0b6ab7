import contextlib
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.fields import read_plain_yaml
from scratch_vs_pretrain.study.plan import plan
from scratch_vs_pretrain.study.sections import (
    Data,
    DataFiles,
    Evaluation,
    Schedule,
    Switch,
    Tune,
    VocTree,
    paper_schedule,
    short_schedule,
)
from scratch_vs_pretrain.study.spec import (
    load_study,
    parse_study,
    schema_markdown,
    study_schema,
)

BASE = {
    "name": "tiny",
    "base": "base.yaml",
    "arms": {"scratch": {"init": "scratch"}, "pretrained": {"init": "weights.pth"}},
    "schedules": ["2x"],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "base.yaml").write_text("VERSION: 2\n")
    return tmp_path


@pytest.fixture
def load(folder):
    """Loads a study that consists of BASE and some changes; None removes a field."""

    def load(weights=None, **changes):
        content = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
        file = folder / "study.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return load_study(file, weights)

    return load


def test_reads_every_field(load, folder):
    for name in ("train.json", "test.json"):
        (folder / name).write_text("{}")
    study = load(
        description="Does it\n  help?",
        arms={
            "scratch": {"init": "scratch", "schedules": ["9x"]},
            "imagenet": {"init": "catalog://ImageNetPretrained/FAIR/R-50-GN"},
            "own": {"init": "sub/../weights.pth", "overrides": {"MODEL.FPN.NORM": "GN"}},
        },
        schedules=["6x", {"iterations": 600, "name": "short", "drops_before_end": [200, 67]}],
        seeds=[3, 0],
        preset="torchvision",
        overrides={"INPUT.MIN_SIZE_TRAIN": [640, 800]},
        evaluation={"period": 100, "at": [50, 10]},
        data={
            "train": {"annotations": "train.json", "images": "."},
            "test": {"annotations": "test.json", "images": str(folder)},
        },
        allow_differences=["MODEL.FPN.NORM"],
    )
    short = Schedule("short", 600, (200, 67))
    assert study.name == "tiny"
    assert study.description == "Does it help?"
    assert study.base == folder / "base.yaml"
    assert [arm.name for arm in study.arms] == ["scratch", "imagenet", "own"]
    assert study.arms[0].schedules == (paper_schedule(9),)
    assert study.arms[1].schedules == (paper_schedule(6), short)
    assert study.arms[1].weights == "catalog://ImageNetPretrained/FAIR/R-50-GN"
    assert study.arms[2].weights == str(folder / "weights.pth")
    assert study.arms[2].overrides == {"MODEL.FPN.NORM": "GN"}
    assert study.seeds == (3, 0)
    assert study.preset == "torchvision"
    assert study.overrides == {"INPUT.MIN_SIZE_TRAIN": [640, 800]}
    assert study.evaluation == Evaluation(100, (10, 50))
    (train,) = study.data.train
    assert train.annotations == folder / "train.json"
    assert study.data.test.images == folder
    assert study.allow_differences == ("MODEL.FPN.NORM",)


def test_has_defaults(load):
    study = load()
    assert (study.seeds, study.overrides, study.preset, study.data) == ((0,), {}, None, None)
    assert study.evaluation == Evaluation()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "study.yaml"


class TestBadFile:
    def test_missing(self, tmp_path):
        with pytest.raises(UserError, match=r"absent.yaml: no such file"):
            load_study(tmp_path / "absent.yaml")

    def test_empty(self, tmp_path):
        (tmp_path / "empty.yaml").touch()
        with pytest.raises(UserError, match=r"empty.yaml: the file is empty; it needs name"):
            load_study(tmp_path / "empty.yaml")

    def test_python_tag(self, tmp_path):
        file = tmp_path / "tag.yaml"
        file.write_text("name: x\narms: !!python/object:os.system {}\n")
        with pytest.raises(UserError, match=r"python/object:os.system.* line 2"):
            load_study(file)

    @pytest.mark.parametrize("content", ["just text", "[1, 2]", "5"])
    def test_no_mapping(self, tmp_path, content):
        (tmp_path / "odd.yaml").write_text(content)
        with pytest.raises(UserError, match="must be a mapping of keys to values"):
            load_study(tmp_path / "odd.yaml")


ONE_ARM = {"init": "scratch"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "name is missing"),
        ({"base": None}, "base is missing"),
        ({"arms": None}, "arms is missing"),
        ({"schedules": None}, r"arms\.scratch: has no schedules, and neither has the study"),
        ({"shedules": ["2x"]}, "unknown key shedules; did you mean schedules?"),
        ({"arms": {"a": {**ONE_ARM, "overide": {}}}}, r"key arms\.a\.overide; did you mean overr"),
        ({"evaluation": {"perriod": 5}}, r"unknown key evaluation\.perriod; did you mean period"),
        ({"schedules": [{"iteration": 5}]}, r"schedules\.0: .* did you mean iterations"),
        ({"name": "a/b"}, "name: 'a/b' cannot name a folder"),
        ({"name": ".."}, "name: '..' cannot name a folder"),
        ({"name": 5}, "name: must be text, not 5"),
        ({"arms": {"a b": ONE_ARM}}, r"arms\.a b: 'a b' cannot name a folder"),
        ({"arms": {}}, "arms: names no arm"),
        ({"arms": {"a": "scratch"}}, r"arms\.a: must be a mapping"),
        ({"arms": {"a": {}}}, r"arms\.a\.init is missing"),
        ({"arms": {"a": {"init": None}}}, r"arms\.a\.init: must be text, not None"),
        (
            {"arms": {"a": {"init": "Scratch"}}},
            r"arms\.a\.init: Scratch is no file; did you mean scratch",
        ),
        (
            {"arms": {"a": {"init": "scrach"}}},
            r"arms\.a\.init: scrach is no file; did you mean scr",
        ),
        ({"arms": {"a": {"init": "requird"}}}, r"requird is no file; did you mean required"),
        ({"base": "absent.yaml"}, "base: .*absent.yaml: no such file"),
        ({"base": "x" * 5000}, "base: .*: no such file"),
        ({"schedules": []}, "schedules: the list is empty"),
        ({"schedules": "2x"}, "schedules: must be a list in brackets"),
        ({"schedules": ["2x", "2x"]}, "schedules: 2x appears twice"),
        ({"schedules": ["600it", {"iterations": 600}]}, "schedules: 600it appears twice"),
        ({"schedules": [{"iterations": 5, "name": "a"}, {"iterations": 6, "name": "a"}]}, "a app"),
        ({"seeds": []}, "seeds: the list is empty"),
        ({"seeds": [1, 1]}, "seeds: 1 appears twice"),
        ({"seeds": [-1]}, r"seeds\.0: must be at least 0, not -1"),
        ({"seeds": 2}, r"seeds: must be a list in brackets, such as \[0, 1\] of numbers, not 2"),
        ({"preset": "torchvison"}, "preset: unknown preset 'torchvison'; known are detectron2, "),
        (
            {"overrides": {"MODEL.WEIGHTS": "x"}},
            r"\.MODEL\.WEIGHTS: .* use the arm's init",
        ),
        ({"overrides": {"SOLVER.MAX_ITER": 5}}, r"SOLVER\.MAX_ITER: cannot .*; use schedules"),
        ({"overrides": {"SOLVER.STEPS": [5]}}, r"SOLVER\.STEPS: cannot .*; use schedules"),
        ({"overrides": {"SOLVER.BASE_LR": math.nan}}, r"overrides\.SOLVER\.BASE_LR: is not a num"),
        ({"overrides": {"MODEL.PIXEL_MEAN": [1.0, math.nan]}}, r"PIXEL_MEAN: is not a number"),
        ({"overrides": {"SEED": 5}}, r"overrides\.SEED: cannot .*; use seeds"),
        ({"overrides": {"OUTPUT_DIR": "x"}}, r"OUTPUT_DIR: .* use the --output option"),
        ({"overrides": {"TEST": {"EVAL_PERIOD": 5}}}, r"write dotted keys, such as TEST\.EVAL_PE"),
        (
            {"overrides": {"TEST.EVAL_PERIOD": 5}, "evaluation": {"period": 5}},
            r"overrides\.TEST\.EVAL_PERIOD: follows from evaluation\.period",
        ),
        ({"evaluation": {"at": [0]}}, r"evaluation\.at\.0: must be at least 1"),
        ({"data": {"train": {}}}, r"data\.test is missing"),
        ({"data": {"train": {}, "test": {}}}, r"data\.train\.annotations is missing"),
        (
            {"data": {"train": {"annotations": "base.yaml", "images": "absent"}, "test": {}}},
            r"data\.train\.images: .*absent: no such folder",
        ),
    ],
)
def test_says_what_is_wrong(load, folder, changes, message):
    with pytest.raises(UserError, match=message) as error:
        load(**changes)
    assert str(error.value).startswith(f"{folder / 'study.yaml'}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"overrides": {"SVP.LOAD": "detector"}, "arms": {"a": {**ONE_ARM, "load": "backbone"}}},
            r"overrides\.SVP\.LOAD: follows from arms\.a\.load; remove one",
        ),
        (
            {"arms": {"a": {**ONE_ARM, "freeze": "backbone", "overrides": {"SVP.FREEZE": ""}}}},
            r"arms\.a\.overrides\.SVP\.FREEZE: follows from arms\.a\.freeze",
        ),
        (
            {"overrides": {"SVP.ADMIT": ["no-warm-up"]}, "admit": ["small-batch-norm"]},
            r"overrides\.SVP\.ADMIT: follows from admit",
        ),
        (
            {
                "arms": {"a": {**ONE_ARM, "overrides": {"SOLVER.BASE_LR": 0.1}}},
                "sizes": [2, {"images": 3, "overrides": {"SOLVER.BASE_LR": 0.2}}],
            },
            r"sizes\.1\.overrides\.SOLVER\.BASE_LR: follows from arms\.a\.overrides; remove one",
        ),
    ],
)
def test_two_places_may_not_set_one_key(load, changes, message):
    with pytest.raises(UserError, match=message):
        load(**changes)


def test_an_arm_may_load_otherwise_than_another_is_told_to(load):
    arms = {
        "a": {"init": "w.pth", "load": "backbone"},
        "b": {"init": "w.pth", "overrides": {"SVP.LOAD": "detector"}},
    }
    assert [arm.load for arm in load(arms=arms).arms] == ["backbone", None]


def test_an_arm_may_not_override_what_the_study_owns(load):
    arms = {"a": {"init": "scratch", "overrides": {"SOLVER.MAX_ITER": 5}}}
    with pytest.raises(UserError, match=r"arms\.a\.overrides\.SOLVER\.MAX_ITER: .* use schedules"):
        load(arms=arms)


class TestPreset:
    def test_of_an_arm_is_for_the_pair(self, load):
        arms = {"a": {"init": "scratch"}, "b": {"init": "w.pth", "preset": "torchvision"}}
        assert load(arms=arms).preset == "torchvision"

    def test_may_be_named_twice_alike(self, load):
        arms = {"a": {"init": "scratch", "preset": "detectron2"}, "b": {"init": "w.pth"}}
        assert load(arms=arms, preset="detectron2").preset == "detectron2"

    def test_contradictions_are_refused(self, load):
        arms = {
            "a": {"init": "v.pth", "preset": "detectron2"},
            "b": {"init": "w.pth", "preset": "torchvision"},
        }
        with pytest.raises(
            UserError, match=r"arms\.a\.preset: is detectron2, but arms\.b\.preset is torchvision"
        ):
            load(arms=arms)


class TestSchedule:
    @pytest.mark.parametrize(
        ("value", "spec"),
        [
            ("2x", paper_schedule(2)),
            ("11x", paper_schedule(11)),
            ("600it", short_schedule(600)),
            ({"iterations": 600}, short_schedule(600)),
            (
                {"iterations": 9, "name": "n", "drops_before_end": []},
                Schedule("n", 9),
            ),
        ],
    )
    def test_is_read(self, load, value, spec):
        assert load(schedules=[value]).arms[0].schedules == (spec,)

    @pytest.mark.parametrize(
        "value",
        ["2y", "0x", "-1", "x", "", "1.5x", "02x", "2X", " 2x", "2x\n", "٣x", 2, -1, None, ["2x"]],
    )
    def test_that_is_none_is_refused(self, load, value):
        with pytest.raises(UserError, match=r"is no schedule; write 2x .* or {iterations: 600}"):
            load(schedules=[value])

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({}, "iterations is missing"),
            ({"iterations": 0}, "must be at least 1, not 0"),
            ({"iterations": "600"}, "must be a whole number"),
            ({"iterations": 10**30}, "must be at most 1,000,000,000, not 1000"),
            ({"iterations": 600, "name": "2x"}, "would read like a multiple"),
            ({"iterations": 600, "drops_before_end": [600]}, "600 iterations before the end is no"),
            ({"iterations": 600, "drops_before_end": [67, 200]}, "the earliest drop first"),
            ({"iterations": 1, "drops_before_end": [1]}, "1 iterations before the end is no"),
        ],
    )
    def test_of_a_literal_length_is_checked(self, load, value, message):
        with pytest.raises(UserError, match=message):
            load(schedules=[value])


class TestWeights:
    REQUIRED = {"scratch": {"init": "scratch"}, "pretrained": {"init": "required"}}  # noqa: RUF012

    def test_take_the_place_of_required(self, load, folder, monkeypatch):
        monkeypatch.chdir(folder)
        study = load({"pretrained": "w.pth"}, arms=self.REQUIRED)
        assert study.arms[1].weights == str(folder / "w.pth")

    def test_take_the_place_of_the_files(self, load):
        study = load({"pretrained": "catalog://x"})
        assert study.arms[1].weights == "catalog://x"

    def test_that_are_required_are_not_needed_to_read(self, load):
        assert load(arms=self.REQUIRED).arms[1].init == "required"

    def test_of_an_unknown_arm_are_refused(self, load):
        with pytest.raises(UserError, match=r"has no arm pretraind; did you mean pretrained?"):
            load({"pretraind": "w.pth"})

    def test_of_the_scratch_arm_are_refused(self, load):
        wrong = {"run://x": "names no run", "a\nb": "holds line breaks", "\udcff": "not UTF-8"}
        for path, message in wrong.items():
            with pytest.raises(UserError, match=rf"--weights pretrained=\.\.\.: .*{message}"):
                load({"pretrained": path})
        with pytest.raises(UserError, match="starts scratch from random weights"):
            load({"scratch": "w.pth"})


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
TAGS = ("int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "str", "map")
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=8,
)


class TestRandomContent:
    @settings(deadline=None)
    @given(content=VALUES)
    def test_lets_nothing_but_user_errors_out(self, content):
        with pytest.raises(UserError):
            parse_study(content, Path("study.yaml"), {})

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_lets_nothing_but_user_errors_out_of_one_odd_field(self, folder, data):
        content = {
            **BASE,
            "seeds": [0],
            "overrides": {"TEST.EVAL_PERIOD": 5},
            "data": {"train": {"annotations": "base.yaml", "images": "."}, "test": {}},
        }
        path = data.draw(
            st.sampled_from(
                [[key] for key in (*content, *study_schema()["properties"])]
                + [["allow_differences"], ["arms", "scratch"], ["arms", "scratch", "init"]]
                + [["arms", "scratch", "overrides"], ["data", "train"], ["data", "train", "images"]]
            )
        )
        odd = yaml.safe_load(yaml.safe_dump(content))
        inner = odd
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = data.draw(VALUES)
        with contextlib.suppress(UserError):
            assert parse_study(odd, folder / "study.yaml", {}).runs()


class TestReadPlainYaml:
    def test_returns_plain_values(self, file):
        file.write_text("a: [1, x, 2.5, true]\nb: {c: null}\nd: [0, '010', 0x10, 1_000, 1e3, 08]\n")
        found = read_plain_yaml(file)
        assert found.pop("d") == [0, "010", 16, 1000, "1e3", "08"]
        assert found == {"a": [1, "x", 2.5, True], "b": {"c": None}}

    @pytest.mark.parametrize(
        "tag",
        ["!!python/object/apply:os.mkdir ['{}']", "!!python/object/new:os.mkdir ['{}']"],
    )
    def test_executes_nothing(self, file, tag):
        proof = file.parent / "executed"
        file.write_text(f"a: {tag.format(proof)}\n")
        with pytest.raises(UserError, match=r"not plain YAML .*python/object.*line 1"):
            read_plain_yaml(file)
        assert not proof.exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: 1\nb: 2\na: 3\n", "a appears twice .*line 3"),
            ("a:\n  b: 1\n  b: 2\n", "b appears twice .*line 3"),
            ("a: &x [1]\nb: *x\n", "aliases are not supported .*line 2"),
            ("a: &x [*x]\n", "aliases are not supported .*line 1"),
            ("[1]: 2\n", "a key is not text .*line 1"),
            ("a: [1\nb: 2\n", "not plain YAML .*line 2"),
            ("a: 1\n\tb: 2\n", "not plain YAML .*line 2"),
            ("a: 2020-13-45\n", "not plain YAML before line"),
            ("a: !!int x\n", "!!int: tags are not supported .*line 1"),
            ("a: 1\nb: !!set {c}\n", "!!set: tags are not supported .*line 2"),
            ("a: ! x\n", "!: tags are not supported .*line 1"),
            ("a: {<<: {b: 1}, b: 2}\n", "<< is not supported; write out .*line 1"),
            ("a: 0100\n", "0100 means 64; write that, or what you mean, as a plain number"),
            ("a: [-010]\n", "-010 means -8; "),
            ("a: [1, 1:30]\n", "1:30 means 90; .*line 1"),
            ("a: 1:30.5\n", r"1:30\.5 means 90\.5; "),
            ("a: 1\n---\nb: 2\n", "not plain YAML .*document"),
            ("[" * 5000, "nested too deeply"),
            ("a: \x00", "control characters"),
        ],
    )
    def test_names_file_and_line(self, file, text, message):
        file.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            read_plain_yaml(file)
        assert str(error.value).startswith(f"{file}: ")
        assert "\n" not in str(error.value)

    def test_names_a_missing_file(self, file):
        with pytest.raises(UserError, match=r"study.yaml: no such file"):
            read_plain_yaml(file)

    def test_names_what_is_no_file(self, tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_plain_yaml(tmp_path)

    def test_names_what_is_no_text(self, file):
        file.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match="not a text file"):
            read_plain_yaml(file)

    @settings(deadline=None)
    @given(
        st.binary(max_size=60)
        | st.text("ab:-[]{}!&*#'\"|>%@`\n\t 01.,?=<~", max_size=60).map(str.encode)
        | st.builds("!!{} {}".format, st.sampled_from(TAGS), st.text("a0:-[]{}. \n", max_size=9))
        .map(str.encode)
    )  # fmt: skip
    def test_lets_nothing_but_user_errors_out(self, tmp_path_factory, content):
        file = tmp_path_factory.getbasetemp() / "random.yaml"
        file.write_bytes(content)
        with contextlib.suppress(UserError):
            read_plain_yaml(file)


CONFIGS = Path(__file__).parents[2] / "configs"


class TestSchema:
    def test_the_committed_files_are_made_of_it(self):
        schema = study_schema()
        assert json.loads((CONFIGS / "study.schema.json").read_text()) == json.loads(
            json.dumps(schema)
        )
        page = CONFIGS.parent / "docs" / "study_file.md"
        assert page.read_text().rstrip() == schema_markdown(schema).rstrip()

    def test_the_whole_example_is_planned_and_leaves_out_what_it_says(self, tmp_path, tiny_shapes):
        page = (CONFIGS.parent / "docs/study_example.md").read_text()
        example, after = page.split("```yaml\n")[1].split("```")
        (tmp_path / "cells.yaml").write_text(example)
        network = "mask_rcnn_R_50_FPN_gn.yaml"
        (tmp_path / network).write_text(f'_BASE_: "{CONFIGS / network}"')
        for part in ("train", "test"):
            (tmp_path / part).symlink_to(tiny_shapes / part)
            (tmp_path / f"{part}.json").symlink_to(tiny_shapes / f"annotations/{part}.json")
        study = load_study(tmp_path / "cells.yaml")
        assert len(plan(study).rows) == 2 * 3 * (1 + 2)
        left_out = set(study_schema()["properties"]) - set(yaml.safe_load(example))
        assert left_out == {"switch", "imports", "noise", "allow_differences", "admit"}
        assert all(f"`{key}`" in after for key in left_out)

    def test_every_key_is_described(self):
        schema = study_schema()
        for part in (schema, *(one.get("anyOf", [one])[-1] for one in schema["$defs"].values())):
            assert all(told.get("description") for told in part["properties"].values())
            assert part["additionalProperties"] is False

    @pytest.mark.parametrize(
        "file", sorted((CONFIGS / "studies").rglob("*.yaml")), ids=lambda f: f.stem
    )
    def test_every_study_names_it(self, file):
        first = file.read_text().splitlines()[0]
        start, _, path = first.partition("$schema=")
        assert start == "# yaml-language-server: "
        assert (file.parent / path).resolve() == CONFIGS.resolve() / "study.schema.json"


def test_a_whole_number_of_thousands_of_digits_is_refused(folder):
    digits = "0x" + "f" * 6000
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(BASE).replace("- 2x", f"- {{iterations: {digits}}}"))
    with pytest.raises(UserError, match=r"iterations: must be at most .* a number of thousands"):
        load_study(file)


def test_a_lazy_config_is_named(load):
    with pytest.raises(UserError, match=r"base: model\.py is a LazyConfig, which is Python"):
        load(base="model.py")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imports": ["parts.py/x"]}, r"imports\.0: 'parts\.py/x' is no module"),
        ({"answer": {"margin": -1}}, r"answer\.margin: must be a number above 0"),
        ({"answer": {"seeds": {"least": 5, "most": 3}}}, r"answer\.seeds\.most: is 3, less than"),
        ({"noise": {"sd": 0.2}}, r"noise: noise\.because is missing"),
        ({"conclusions": {"margin": 1}}, "conclusions was replaced in version 0.2; write answer"),
        ({"arms": {"a": {**ONE_ARM, "load": "all"}}}, r"arms\.a\.load: unknown load 'all'; known"),
        ({"arms": {"a": {"init": "run://x"}}}, r"arms\.a\.init: run://x names no run"),
    ],
)
def test_new_keys_are_as_strict(load, changes, message):
    with pytest.raises(UserError, match=message):
        load(**changes)


FILES = {"annotations": "a.json", "images": "."}
TREE = {"voc": "tree", "split": "val"}


class TestData:
    @pytest.fixture
    def read(self, load, folder):
        (folder / "a.json").write_text("{}")
        lists = folder / "tree" / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        for split in ("trainval", "val"):
            (lists / f"{split}.txt").write_text("1\n")
        # A copy, as YAML would write what is there twice as an alias.
        return lambda data: load(data=json.loads(json.dumps(data))).data

    def test_coco_files(self, read, folder):
        files = DataFiles(folder / "a.json", folder)
        assert read({"train": FILES, "test": FILES}) == Data((files,), files)

    def test_voc_trees(self, read, folder):
        root = folder / "tree"
        train = [{"voc": "tree", "split": "trainval", "year": 2007}, TREE]
        assert read({"train": train, "test": TREE, "classes": ["ring", "disc"]}) == Data(
            (VocTree(root, "trainval", 2007), VocTree(root, "val")),
            VocTree(root, "val", 2012),
            ("ring", "disc"),
        )

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"train": FILES}, r"data\.test is missing"),
            ({"train": [], "test": FILES}, r"data\.train: the list is empty"),
            ({"train": [FILES, FILES], "test": FILES}, "appears twice"),
            ({"train": 5, "test": FILES}, r"data\.train: must be a mapping"),
            ({"train": FILES, "test": TREE}, "cannot be mixed"),
            ({"train": FILES, "test": FILES, "classes": ["disc"]}, r"data\.classes: .* remove it"),
            ({"train": TREE, "test": {"voc": "tree"}}, r"data\.test\.split is missing"),
            ({"train": TREE, "test": {**TREE, "split": "test"}}, r"test\.txt: no such file"),
            ({"train": TREE, "test": {**TREE, "split": "../val"}}, "names no list"),
            (
                {"train": TREE, "test": {**TREE, "voc": "no"}},
                r"data\.test\.voc: .*no: no such folder",
            ),
            (
                {"train": TREE, "test": {**TREE, "year": 2010}},
                "unknown year 2010; known are 2007, 2012",
            ),
            ({"train": TREE, "test": {**TREE, "images": "."}}, "unknown key data.test.images"),
            (
                {"train": {**FILES, "split": "val"}, "test": FILES},
                "give annotations and images, or",
            ),
            (
                {"train": {**FILES, "annotations": "b.json"}, "test": FILES},
                r"b\.json: no such file",
            ),
        ],
    )
    def test_what_is_refused(self, read, value, message):
        with pytest.raises(UserError, match=message):
            read(value)


class TestSwitch:
    def test_its_file_is_relative_to_the_study(self, load, folder):
        switch = load(switch={"config": "sub/../base.yaml", "last": 270000}).switch
        assert switch == Switch(folder / "base.yaml", 270_000)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"config": "base.yaml"}, r"switch: .*last"),
            ({"last": 3}, r"switch: .*config"),
            ({"config": "none.yaml", "last": 3}, r"switch\.config: .*none\.yaml: no such file"),
            ({"config": 3, "last": 3}, r"switch\.config"),
            ({"config": "base.yaml", "last": 0}, r"switch\.last"),
            ({"config": "base.yaml", "last": "3x"}, r"switch\.last"),
            ({"config": "base.yaml", "last": True}, r"switch\.last"),
            ({"config": "base.yaml", "last": 3, "at": 5}, r"switch.*at"),
        ],
    )
    def test_all_else_is_refused(self, load, value, message):
        with pytest.raises(UserError, match=rf"study\.yaml: .*{message}"):
            load(switch=value)


RECIPES = {"SOLVER.BASE_LR": [0.02, 0.04], "INPUT.MIN_SIZE_TRAIN": [[800], [512, 800]]}


class TestTune:
    def test_is_read(self, load):
        asked = {"on": "pretrained", "grid": RECIPES, "metric": "segm/AP75"}
        assert load(tune=asked).tune == Tune(
            "pretrained",
            {"SOLVER.BASE_LR": (0.02, 0.04), "INPUT.MIN_SIZE_TRAIN": ([800], [512, 800])},
            "segm/AP75",
        )
        assert load(tune={"on": "scratch", "grid": RECIPES}).tune.metric == "bbox/AP"

    def test_its_key_on_is_no_truth_value(self, load, folder):
        load()
        text = (folder / "study.yaml").read_text()
        (folder / "study.yaml").write_text(f"{text}tune: {{on: scratch, grid: {{A: [1, 2]}}}}\n")
        assert load_study(folder / "study.yaml").tune == Tune("scratch", {"A": (1, 2)})

    @pytest.mark.parametrize(
        ("tune", "message"),
        [
            ({"grid": RECIPES}, "tune.on is missing"),
            ({"on": "pretrained"}, "tune.grid is missing"),
            (
                {"on": "pretrained", "grid": RECIPES, "gird": {}},
                "tune: unknown key tune.gird; did you mean",
            ),
            (
                {"on": "othr", "grid": RECIPES},
                "tune.on: no arm is named othr; known are scratch, pretrained",
            ),
            ({"on": 5, "grid": RECIPES}, "tune.on: must be text"),
            ({"on": "pretrained", "grid": {}}, "tune.grid: has nothing to try"),
            ({"on": "pretrained", "grid": {"A": []}}, "tune.grid.A: the list is empty"),
            ({"on": "pretrained", "grid": {"A": 0.02}}, "tune.grid.A: must be a list"),
            ({"on": "pretrained", "grid": {"A": [1, 1]}}, "tune.grid.A: 1 appears twice"),
            ({"on": "pretrained", "grid": {"A": [math.nan, 1]}}, "tune.grid.A: is not a number"),
            ({"on": "pretrained", "grid": {"A": [[math.nan]]}}, "tune.grid.A: is not a number"),
            ({"on": "pretrained", "grid": {"": [1]}}, "tune.grid: a config key is empty"),
            ({"on": "pretrained", "grid": {"A": [{"B": 1}]}}, "tune.grid.A: list the values"),
            (
                {"on": "pretrained", "grid": {"SEED": [1]}},
                "tune.grid.SEED: is set by seeds already",
            ),
            ({"on": "pretrained", "grid": {"TEST.AUG": [1]}}, "is set by overrides already"),
            (
                {"on": "pretrained", "grid": {"A": list(range(99)), "B": list(range(99))}},
                "tune.grid: has 9,801 points",
            ),
            (
                {"on": "pretrained", "grid": RECIPES, "metric": "bbox/AP57"},
                "tune.metric: unknown metric bbox/AP57; did you mean bbox/AP",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, load, tune, message):
        with pytest.raises(UserError, match=re.escape(message)):
            load(tune=tune, overrides={"TEST.AUG": True})


@pytest.mark.parametrize("key", ["tune", "switch"])
def test_a_key_without_a_value(load, folder, key):
    load()
    text = (folder / "study.yaml").read_text()
    (folder / "study.yaml").write_text(f"{text}{key}:\n")
    with pytest.raises(UserError, match=f"{key}: has no value; give it one, or remove the line"):
        load_study(folder / "study.yaml")
