from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_vs_pretrain.config import (
    config_text,
    default_config,
    differences,
    flatten,
    load_config,
    merge_file,
    merge_overrides,
)
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.text import nearest


@pytest.fixture
def cfg():
    return default_config()


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


class TestRemovedKeys:
    OLD = "SVP: {EVAL_IN_BACKGROUND: True, FAST: {CHANNELS_LAST: True, CUDNN_BENCHMARK: False}}\n"

    def test_a_config_that_names_one_is_told_since_when_and_what_to_do(self, cfg, tmp_path):
        with pytest.raises(UserError, match=r"removed in version 0\.2: .*; delete the line"):
            merge_file(cfg, write(tmp_path, self.OLD))
        with pytest.raises(UserError, match=r"study: SVP\.FAST\.CHANNELS_LAST was removed in"):
            merge_overrides(cfg, {"SVP.FAST.CHANNELS_LAST": True}, "study")

    def test_run_folders_of_older_versions_are_read(self, cfg, tmp_path):
        found = load_config(write(tmp_path, self.OLD))
        assert differences({"old": found, "now": cfg}) == {}


class TestMergeFile:
    def test_inherits_from_its_base(self, cfg, tmp_path):
        write(tmp_path, "SOLVER: {BASE_LR: 0.5, MOMENTUM: 0.8}\n", "base.yaml")
        merge_file(cfg, write(tmp_path, "_BASE_: base.yaml\nSOLVER: {BASE_LR: 0.25}\n"))
        assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM) == (0.25, 0.8)

    def test_a_repeated_key_of_its_base_is_refused_too(self, cfg, tmp_path):
        write(tmp_path, "SOLVER: {GAMMA: 0.5, GAMMA: 0.1}\n", "base.yaml")
        with pytest.raises(UserError, match="GAMMA appears twice"):
            merge_file(cfg, write(tmp_path, "_BASE_: base.yaml\n"))

    def test_refuses_code_and_runs_none(self, cfg, tmp_path):
        proof = tmp_path / "executed"
        text = f"MODEL: !!python/object/apply:os.mkdir ['{proof}']\n"
        with pytest.raises(UserError, match="not plain YAML"):
            merge_file(cfg, write(tmp_path, text))
        assert not proof.exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("SOLVER: {BASE_LRR: 1.0}", r"unknown config key SOLVER\.BASE_LRR; did you mean "),
            (
                "SOLVER: {BASE_LR: fast}",
                r"SOLVER\.BASE_LR must be of type float, like 0.001, ",
            ),
            ("SOLVER: {BASE_LR: }", r"SOLVER\.BASE_LR has no value; it was 0\.001"),
            ("SOLVER: 5", "SOLVER is a section, not a value"),
            ("SOLVER: {BASE_LR: [", "not plain YAML"),
            ("", "not a mapping"),
            ("[1, 2]", "not a mapping"),
            ("SOLVER:\n  BASE_LR: 1.0\n  BASE_LR: 2.0", "BASE_LR appears twice .*line 3"),
            ("A: &a {B: 1}\nC: [*a, {B: 1, B: 2}]", "B appears twice .*line 2"),
            ("_BASE_: absent.yaml", "cannot read .*absent.yaml"),
            ("_BASE_: config.yaml", "include each other"),
            ("VERSION: 3", "v3"),
            (f"A: {'[' * 90_000}{']' * 90_000}", "nested too deeply"),
            (f"MODEL: {{WEIGHTS: '{'-' * 100_000}1'}}", "nested too deeply"),
        ],
    )
    def test_says_what_is_wrong(self, cfg, tmp_path, text, message):
        file = write(tmp_path, text)
        with pytest.raises(UserError, match=message) as error:
            merge_file(cfg, file)
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["absent.yaml", "x" * 300, "nul\0"])
    def test_names_a_missing_file(self, cfg, tmp_path, name):
        with pytest.raises(UserError):
            merge_file(cfg, tmp_path / name)


class TestMergeOverrides:
    def test_sets_dotted_keys(self, cfg):
        overrides = {"SOLVER.BASE_LR": 1, "INPUT.MIN_SIZE_TRAIN": [160], "MODEL.MASK_ON": True}
        merge_overrides(cfg, overrides, "here")
        assert cfg.SOLVER.BASE_LR == 1.0
        assert isinstance(cfg.SOLVER.BASE_LR, float)
        assert cfg.INPUT.MIN_SIZE_TRAIN == (160,)
        assert cfg.MODEL.MASK_ON is True

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("TEST.EVAL_PERIODS", 1, "unknown config key TEST.EVAL_PERIODS; did you mean TEST.E"),
            ("MODEL", 1, "unknown config key MODEL"),
            ("_BASE_", "x.yaml", "unknown config key _BASE_"),
            ("INPUT.MIN_SIZE_TRAIN", 160, r"must be of type tuple, like \(800,\), not 160"),
            ("MODEL.MASK_ON", 1, "must be of type bool, like False, not 1"),
            ("SOLVER.IMS_PER_BATCH", None, "SOLVER.IMS_PER_BATCH has no value; it was 16"),
            ("MODEL.DEVICE", {"a": 1}, "must be of type str"),
        ],
    )
    def test_says_what_is_wrong(self, cfg, key, value, message):
        with pytest.raises(UserError, match=message) as error:
            merge_overrides(cfg, {key: value}, "study.yaml: overrides")
        assert str(error.value).startswith("study.yaml: overrides: ")

    def test_admits_none_where_the_default_is_none(self, cfg):
        merge_overrides(cfg, {"SOLVER.WEIGHT_DECAY_BIAS": 0.0}, "here")
        assert cfg.SOLVER.WEIGHT_DECAY_BIAS == 0.0

    @settings(deadline=None)  # the first example imports Detectron2
    @given(
        key=st.sampled_from(["SOLVER.STEPS", "MODEL.WEIGHTS", "SOLVER.BASE_LR", "DATASETS.TRAIN"])
        | st.text(max_size=20),
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists
        ),
    )
    def test_lets_nothing_but_user_errors_out(self, key, value):
        cfg = default_config()
        before = flatten(cfg)
        try:
            merge_overrides(cfg, {key: value}, "here")
        except UserError:
            return
        assert set(flatten(cfg)) == set(before)


class TestDifferences:
    def test_lists_each_config_value(self, cfg):
        other = cfg.clone()
        other.SOLVER.BASE_LR = 0.5
        other.MODEL.FPN.NORM = "GN"
        assert differences({"a": cfg, "b": other}) == {
            "MODEL.FPN.NORM": {"a": "", "b": "GN"},
            "SOLVER.BASE_LR": {"a": 0.001, "b": 0.5},
        }

    def test_a_config_equals_itself_read_again(self, cfg, tmp_path):
        cfg.SVP.DATASETS = (("name", "annotations.json", "images"),)
        again = load_config(write(tmp_path, config_text(cfg)))
        assert differences({"a": cfg, "b": again}) == {}
        assert again.is_frozen()

    def test_text_does_not_depend_on_shared_objects(self, cfg):
        weights = [2.0]
        cfg.MODEL.PIXEL_STD, cfg.MODEL.PIXEL_MEAN = weights, weights
        other = cfg.clone()
        other.MODEL.PIXEL_STD, other.MODEL.PIXEL_MEAN = [2.0], [2.0]
        assert config_text(cfg) == config_text(other)
        assert "&id" not in config_text(cfg)

    def test_of_one_config_is_nothing(self, cfg):
        assert differences({"a": cfg}) == {}

    def test_names_keys_that_one_lacks(self, cfg):
        other = cfg.clone()
        del other.SOLVER["NESTEROV"]
        assert differences({"a": cfg, "b": other}) == {"SOLVER.NESTEROV": {"a": False, "b": None}}


def test_nearest_names_the_likeliest_key():
    assert nearest("schedule", ["seeds", "schedules"]) == "; did you mean schedules?"
    assert nearest("zzz", ["seeds", "schedules"]) == ""


def test_bases_are_never_fetched(cfg, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("_BASE_: http://localhost:1/base.yaml\n")
    with pytest.raises(UserError, match=r"_BASE_ is 'http.*must be a file here; download it"):
        merge_file(cfg, file)


def test_a_number_beyond_floats_is_refused(cfg):
    with pytest.raises(UserError, match=r"study: SOLVER\.BASE_LR is a number too large"):
        merge_overrides(cfg, {"SOLVER.BASE_LR": 10**400}, "study")
