"""Run folders are written, and those that are there are checked."""

import hashlib
import json
import os
from collections import Counter
from typing import ClassVar

import pytest

from scratch_vs_pretrain import _detectron2
from scratch_vs_pretrain.config import load_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling import checkpoint_file
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.spec import load_study


def prepared(study_file, output):
    return prepare(load_study(study_file), output)


def test_writes_what_a_run_needs(write_study, tmp_path):
    folders = prepared(write_study(seeds=[0, 3]), tmp_path / "out")
    paths = [folder.path.relative_to(tmp_path) for folder in folders]
    assert [str(path) for path in paths] == [
        "out/tiny/scratch/short/seed0",
        "out/tiny/scratch/short/seed3",
    ]
    run = folders[1].read().model_dump(mode="json")
    assert (run["state"], run["seed"], run["iterations"]) == ("planned", 3, 6)
    assert run["init"]["name"] == "scratch"
    assert folders[1].config_file.is_file()


def test_again_changes_nothing(write_study, tmp_path):
    study = write_study()
    folder = prepared(study, tmp_path)[0]
    before = folder.run_file.read_bytes(), folder.config_file.read_bytes()
    assert prepared(study, tmp_path)[0] == folder
    assert (folder.run_file.read_bytes(), folder.config_file.read_bytes()) == before


def test_new_seeds_and_another_description_are_accepted(write_study, tmp_path):
    first = prepared(write_study(), tmp_path)[0]
    first.update(state="finished")
    study = write_study(seeds=[0, 1], description="with another seed")
    assert [folder.state() for folder in prepared(study, tmp_path)] == ["finished", "planned"]


def test_by_what_is_judged_is_written_and_brought_up_to_date(write_study, tmp_path, capsys):
    noise = {"sd": 0.2, "because": "two runs"}
    answer = {"margin": 1, "level": 0.9, "metric": "segm/AP", "converged": "it is flat"}
    folder = prepared(write_study(answer=answer, noise=noise), tmp_path)[0]
    recorded = folder.read().model_dump()
    assert {key: recorded[key] for key in answer} == answer
    assert recorded["noise"] == noise
    folder.update(state="finished")
    changed = write_study(answer={"margin": 2})
    with folder.lock():
        prepared(changed, tmp_path)
    assert folder.read().margin == 1
    assert "is being trained; start the study again later" in capsys.readouterr().err
    folder.lock_file.unlink()
    folder.lock_file.mkdir()
    with pytest.raises(UserError, match=r"cannot be written \(Is a directory\)"):
        prepared(changed, tmp_path)
    folder.lock_file.rmdir()
    prepared(changed, tmp_path)
    assert (folder.read().margin, folder.read().noise, folder.read().metric) == (2, None, None)
    assert folder.state() == "finished"


@pytest.mark.parametrize(
    "damage",
    [b'{"format": 2', b"[" * 200_000, b'{"format": 2, "init": null}', b"\xff", b"9" * 5000],
    ids=["cut", "nested", "null", "bytes", "digits"],
)
def test_damaged_run_is_refused_and_kept(write_study, tmp_path, damage):
    study = write_study()
    folder = prepared(study, tmp_path)[0]
    folder.run_file.write_bytes(damage)
    with pytest.raises(UserError, match=r"seed0/run\.json: "):
        prepared(study, tmp_path)
    assert folder.run_file.read_bytes() == damage


def test_another_config_is_refused_and_named(write_study, tmp_path):
    folder = prepared(write_study(), tmp_path)[0]
    before = folder.config_file.read_bytes()
    changed = write_study(overrides={"SOLVER.MOMENTUM": 0.8})
    with pytest.raises(UserError, match=r"SOLVER.MOMENTUM \(0.9 there, 0.8 now\)"):
        prepared(changed, tmp_path)
    assert folder.config_file.read_bytes() == before


def test_a_switch_where_there_was_none_is_refused_and_named(write_study, tmp_path):
    base = load_study(write_study()).base
    cascade = tmp_path / "cascade.yaml"
    cascade.write_text(f"_BASE_: {base}\nMODEL: {{ROI_HEADS: {{NAME: CascadeROIHeads}}}}\n")
    folder = prepared(write_study(), tmp_path)[0]
    switched = write_study(switch={"config": str(cascade), "last": 3})
    with pytest.raises(UserError, match=r"another config: .*switch \(None there, \{'at': 3\} now"):
        prepared(switched, tmp_path)
    assert not folder.before_switch_file.exists()


def test_other_weights_are_refused(write_study, tiny_backbone, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(tiny_backbone.read_bytes())
    study = write_study(arms={"pretrained": {"init": str(weights)}})
    prepared(study, tmp_path / "out")
    from scratch_vs_pretrain.modeling.checkpoint_file import read_checkpoint, write_backbone

    state = {name: tensor + 1 for name, tensor in read_checkpoint(weights).items()}
    write_backbone(weights, state, {})
    with pytest.raises(UserError, match="started from other weights"):
        prepared(study, tmp_path / "out")


def test_the_same_weights_may_lie_elsewhere(write_study, tiny_backbone, tmp_path):
    prepared(write_study(arms={"pretrained": {"init": str(tiny_backbone)}}), tmp_path / "out")
    copy = tmp_path / "copy.pth"
    copy.write_bytes(tiny_backbone.read_bytes())
    prepared(write_study(arms={"pretrained": {"init": str(copy)}}), tmp_path / "out")


def test_runs_that_are_to_begin_read_the_weights_where_they_lie_now(
    write_study, tiny_backbone, tmp_path
):
    """And keep no path of an output folder that was moved."""
    old, new = tmp_path / "old.pth", tmp_path / "new.pth"
    old.write_bytes(tiny_backbone.read_bytes())
    schedules = [{"iterations": count, "name": f"{count}it"} for count in (6, 9, 12)]

    def study(weights):
        arms = {"pretrained": {"init": str(weights)}}
        return write_study(arms=arms, schedules=schedules)

    folders = prepared(study(old), tmp_path / "out")
    folders[2].update(state="finished")
    old.rename(new)
    assert prepared(study(new), tmp_path / "out") == folders
    for folder, weights in zip(folders, (new, new, old), strict=True):
        found = load_config(folder.config_file).MODEL.WEIGHTS
        assert found == folder.read().init.weights == str(weights)


def other_annotations(file):
    """Takes the last annotation out of a file."""
    content = json.loads(file.read_text())
    content["annotations"].pop()
    file.write_text(json.dumps(content))


class TestOtherData:
    @pytest.fixture
    def own(self, tiny_shapes, tmp_path):
        """The study's data, in files of the test's own."""

        def files(part):
            file = tmp_path / f"{part}.json"
            file.write_bytes((tiny_shapes / f"annotations/{part}.json").read_bytes())
            return {"annotations": str(file), "images": str(tiny_shapes / part)}

        return {part: files(part) for part in ("train", "test")}

    @pytest.mark.parametrize("part", ["train", "test"])
    @pytest.mark.parametrize("arms", [["scratch"], ["other"], ["scratch", "other"]])
    def test_than_a_run_that_has_begun_has_is_refused(self, own, arms, part, write_study, tmp_path):
        first = prepared(write_study(data=own), tmp_path / "out")[0]
        before = first.read().data
        assert (before.train.images, before.train.names) == (12, ("tiny_train",))
        first.checkpoints.mkdir()
        (first.checkpoints / "0000002.pth").touch()
        other_annotations(tmp_path / f"{part}.json")
        study = write_study(data=own, arms={arm: {"init": "scratch"} for arm in arms})
        sha = hashlib.sha256((tmp_path / f"{part}.json").read_bytes()).hexdigest()
        title = "training" if part == "train" else "test"
        told = rf"scratch/short/seed0: {title} data have changed since .*{sha} now\); restore tiny_"
        with pytest.raises(UserError, match=told):
            prepared(study, tmp_path / "out")
        assert len(list(tmp_path.rglob("run.json"))) == 1
        assert first.read().data == before

    def test_is_taken_by_runs_of_which_none_has_begun(self, own, write_study, tmp_path):
        study = write_study(data=own)
        (folder,) = prepared(study, tmp_path / "out")
        before = folder.read().data
        folder.update(state="failed", iteration=1)
        other_annotations(tmp_path / "train.json")
        prepared(study, tmp_path / "out")
        after = folder.read().data
        assert after.train.annotations == before.train.annotations - 1
        assert after.test == before.test

    def test_of_another_size_is_another_matter(self, own, write_study, tmp_path):
        folders = prepared(write_study(data=own, sizes=[2, 3]), tmp_path / "out")
        assert [folder.read().data.train.images for folder in folders] == [2, 3]
        assert len({folder.read().data.train.sha256 for folder in folders}) == 2
        folders[0].update(state="finished")
        prepared(write_study(data=own, sizes=[2, "full"]), tmp_path / "out")


class TestRunsBeside:
    """Runs that are there and not in the study, with which tables would compare new ones."""

    ARMS: ClassVar = {"a": {"init": "scratch"}, "b": {"init": "scratch"}}

    def refused(self, study, output, message):
        there = len(list(output.rglob("run.json")))
        with pytest.raises(UserError, match=message) as error:
            prepared(study, output)
        assert "choose another output folder, or change the study back" in str(error.value)
        assert len(list(output.rglob("run.json"))) == there

    @pytest.mark.parametrize(
        "later",
        [
            {"arms": {"b": {"init": "scratch"}}},
            {"seeds": [1]},
            {"schedules": [{"iterations": 9, "name": "long"}]},
        ],
    )
    def test_of_another_recipe_are_refused_and_named(self, later, write_study, tmp_path):
        first = {"arms": {"a": {"init": "scratch"}}}
        output = tmp_path / "out"
        prepared(write_study(**first, overrides={"SOLVER.BASE_LR": 0.01}), output)
        study = write_study(**{**first, **later}, overrides={"SOLVER.BASE_LR": 0.0001})
        told = r"a/short/seed0: holds a run of another recipe than .*_LR \(0\.01 there, 0\.0001 n"
        self.refused(study, output, told)
        prepared(write_study(**{**first, **later}, overrides={"SOLVER.BASE_LR": 0.01}), output)

    def test_of_another_arm_may_differ_in_what_the_study_admits(self, write_study, tmp_path):
        def study(rate, arms, **fields):
            arms = {arm: {"init": "scratch", "overrides": {"SOLVER.GAMMA": rate}} for arm in arms}
            return write_study(arms=arms, allow_differences=["SOLVER.GAMMA"], **fields)

        output = tmp_path / "out"
        prepared(study(0.5, "a"), output)
        prepared(study(0.25, "b"), output)
        self.refused(study(0.3, "a", seeds=[1]), output, r"a/short/seed0: .*GAMMA \(0\.5 there, 0")

    def test_of_another_kind_of_schedule_have_its_rate(self, write_study, tmp_path):
        prepared(write_study(schedules=["1x"]), tmp_path / "out")
        prepared(write_study(schedules=["2x", "6it"]), tmp_path / "out")
        rate = {"SOLVER.BASE_LR": 0.5}
        study = write_study(schedules=["3x"], overrides=rate)
        self.refused(study, tmp_path / "out", r"seed0: .* SOLVER\.BASE_LR")

    def test_of_the_same_arm_start_from_the_same_weights(
        self, write_study, tiny_backbone, tmp_path
    ):
        prepared(write_study(arms={"a": {"init": "scratch"}}), tmp_path / "out")
        study = write_study(arms={"a": {"init": str(tiny_backbone)}}, seeds=[1])
        self.refused(study, tmp_path / "out", r"weights \(sha256 None there, [0-9a-f]{64} now")

    def test_of_another_switch_are_refused(self, write_study, tmp_path):
        cascade = tmp_path / "cascade.yaml"
        base = load_study(write_study()).base
        cascade.write_text(f"_BASE_: {base}\nMODEL: {{ROI_HEADS: {{NAME: CascadeROIHeads}}}}\n")
        prepared(write_study(switch={"config": str(cascade), "last": 3}), tmp_path / "out")
        study = write_study(switch={"config": str(cascade), "last": 2}, seeds=[1])
        self.refused(study, tmp_path / "out", r"seed0: .*switch \({'at': 3} there, {'at': 4} now\)")

    def test_of_another_study_are_none_of_its(self, write_study, tmp_path):
        (folder,) = prepared(write_study(), tmp_path / "out")
        folder.update(study="renamed")
        rate = {"SOLVER.BASE_LR": 0.5}
        prepared(write_study(seeds=[1], overrides=rate), tmp_path / "out")


def test_every_file_is_opened_once(write_study, tiny_backbone, tmp_path, monkeypatch):
    weights = tmp_path / "copy.pth"
    weights.write_bytes(tiny_backbone.read_bytes())
    calls = Counter()

    def counted(owner, name):
        original = getattr(owner, name)

        def call(*arguments, **options):
            calls[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    counted(_detectron2, "default_cfg")
    counted(checkpoint_file, "load")
    counted(hashlib, "file_digest")
    counted(RunFolder, "read")
    study = write_study(
        arms={"scratch": {"init": "scratch"}, "pretrained": {"init": str(weights)}},
        schedules=[{"iterations": count, "drops_before_end": [2, 1]} for count in (6, 9)],
        seeds=[0, 1, 2],
    )
    assert len(prepared(study, tmp_path / "out")) == 12
    assert calls["load"] == calls["file_digest"] == 1
    # A config for each arm and schedule; the others are Detectron2's own, to compare with.
    assert calls["default_cfg"] <= 9
    # To plan where a run branches off, and once more under its lock to write that.
    assert calls["read"] <= 24


def test_an_output_that_cannot_be_written(write_study, tmp_path):
    (tmp_path / "out").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"out.*cannot be written"):
        prepared(write_study(), tmp_path / "out")


def test_a_full_disk(write_study, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left"):
        prepared(write_study(), tmp_path / "out")
    assert list(tmp_path.rglob("run.json")) == []


def test_arms_that_differ_are_refused_before_anything_is_written(
    write_study, tiny_backbone, tmp_path
):
    arms = {
        "scratch": {"init": "scratch", "overrides": {"SOLVER.BASE_LR": 0.1}},
        "pretrained": {"init": str(tiny_backbone)},
    }
    with pytest.raises(UserError, match=r"SOLVER.BASE_LR"):
        prepared(write_study(arms=arms), tmp_path / "out")
    assert not (tmp_path / "out").exists()


COCO = {
    "DATASETS.TRAIN": ["coco_2017_train"],
    "DATASETS.TEST": ["coco_2017_val"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
}


@pytest.mark.parametrize(
    ("data", "overrides", "message"),
    [
        (None, COCO, "instances_train2017.json; set DETECTRON2_DATASETS to the folder"),
        (None, COCO | {"DATASETS.TRAIN": ["my_train"]}, "my_train: no such data set"),
        ("own", {"MODEL.BACKBONE.NAME": "build_mine"}, "no build_mine in its BACKBONE registry"),
        ("own", {"MODEL.ROI_HEADS.NAME": "MyHeads"}, "no MyHeads in its ROI_HEADS registry"),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_written(
    write_study, tmp_path, data, overrides, message
):
    fields = {} if data else {"data": None}
    with pytest.raises(UserError, match=message):
        prepared(write_study(overrides=overrides, **fields), tmp_path / "out")
    assert not (tmp_path / "out").exists()
