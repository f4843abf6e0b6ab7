"""One run from its folder, in this process: ``python -m scratch_vs_pretrain.training``."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing import event_accumulator

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.spec import load_study
from scratch_vs_pretrain.training import __main__ as worker
from scratch_vs_pretrain.training import checkpoint, trainer

# Runs that nothing happened to, by their overrides: trained once, and read by several tests.
ALONE = {}


@pytest.fixture
def plan_run(write_study, tmp_path):
    """Plans a one-run study and returns its folder."""

    def plan(output="output", **fields) -> RunFolder:
        return prepare(load_study(write_study(**fields)), tmp_path / output)[0]

    return plan


def test_a_finished_run_has_everything(plan_run, metrics_of):
    folder = plan_run(evaluation={"period": 3, "at": [1]})
    assert worker.main([str(folder.path)]) == worker.FINISHED
    run = folder.read().model_dump(mode="json")
    assert run["state"] == "finished"
    assert run["iteration"] == run["iterations"] == 6
    assert run["samples"]["images"] == 12
    assert run["samples"]["pixels"] == 12 * 64 * 64
    assert run["samples"]["instances"] > 0
    assert run["data"]["train"]["images"] == 12
    assert run["norms"]["GN"] > 20
    assert torch.__version__.startswith(run["provenance"]["versions"]["torch"])
    assert run["resumes"] == []
    evaluated = sorted(int(file.stem) for file in folder.evaluations.iterdir())
    assert evaluated == [1, 3, 6]
    rows = metrics_of(folder)
    scored = [row["iteration"] + 1 for row in rows if "bbox/AP" in row]
    assert scored == evaluated
    assert {"segm/AP75", "samples/pixels", "total_loss", "lr"} <= rows[-1].keys()
    assert sorted({row["iteration"] + 1 for row in rows}) == [1, 2, 3, 4, 6]
    assert "Starting training" in folder.log_file.read_text()
    assert sorted(file.name for file in folder.checkpoints.iterdir()) == [
        "0000004.pth",
        "0000006.pth",
    ]


def test_a_finished_run_is_left_alone(plan_run):
    folder = plan_run()
    folder.update(state="finished")
    assert worker.main([str(folder.path)]) == worker.FINISHED
    assert not folder.metrics_file.exists()


@pytest.mark.parametrize(
    ("stop_after", "overrides"),
    [
        (2, {}),
        (3, {}),
        (2, {"SVP.FAST.ENABLED": True}),
        (3, {"SVP.FAST.ENABLED": True, "SVP.FAST.FUSED_OPTIMIZER": False}),
    ],
)
def test_a_stopped_run_goes_on_exactly(plan_run, assert_same, stop_after, overrides, train_until):
    """SIGTERM saves and stops, on a checkpoint's iteration and between; the rest is bit for bit."""
    stopped = plan_run("stopped", overrides=overrides)
    alone = ALONE.get(str(overrides))
    if alone is None:
        alone = ALONE[str(overrides)] = plan_run("alone", overrides=overrides)
        assert worker.main([str(alone.path)]) == worker.FINISHED

    train_until(stopped, stop_after)
    assert stopped.state() == "interrupted"
    assert stopped.read().iteration == stop_after
    assert worker.main([str(stopped.path)]) == worker.FINISHED
    assert [resume.iteration for resume in stopped.read().resumes] == [stop_after]
    assert stopped.read().samples == alone.read().samples
    assert_same(alone, stopped)


def test_tensorboard_and_log_after_iterations_that_are_repeated(plan_run, train_until, metrics_of):
    folder = plan_run(overrides={"SVP.TENSORBOARD": True})
    train_until(folder, 4)
    checkpoint.path_of(folder, 4).unlink()
    assert worker.main([str(folder.path)]) == worker.FINISHED
    losses = {row["iteration"]: row["total_loss"] for row in metrics_of(folder)}
    assert list(losses) == [1, 3, 5]
    events = event_accumulator.EventAccumulator(str(folder.path / "tensorboard")).Reload()
    points = {point.step: point.value for point in events.Scalars("total_loss")}
    assert points == pytest.approx(losses)
    assert len(events.Scalars("total_loss")) == 3
    lines = [line for line in folder.log_file.read_text().splitlines() if "iter: " in line]
    assert len(lines) == 4  # iterations 1 and 3, and again 3, and 5
    assert all(f"total_loss: {losses[5]:.4g}" in line and "lr: " in line for line in lines[-1:])
    assert "eta: " in lines[1]


def test_both_arms_see_the_same_images(write_study, tiny_backbone, tmp_path, monkeypatch):
    study = write_study(
        arms={"scratch": {"init": "scratch"}, "pretrained": {"init": str(tiny_backbone)}}
    )
    seen = []
    build = worker.Trainer

    class Recorder(build):
        def run_step(self):
            super().run_step()
            seen[-1].append(self.stream.samples["instances"])

    monkeypatch.setattr(worker, "Trainer", Recorder)
    for folder in prepare(load_study(study), tmp_path / "output"):
        seen.append([])
        assert worker.main([str(folder.path)]) == worker.FINISHED
    assert seen[0] == seen[1]
    scratch, pretrained = (
        json.loads(file.read_text())
        for file in sorted(tmp_path.rglob("run.json"), key=lambda file: "scratch" not in str(file))
    )
    assert scratch["init_report"] is None
    assert pretrained["init_report"]["missing"] == []
    assert pretrained["parameters"] == scratch["parameters"]
    assert pretrained["norms"] == scratch["norms"]


def test_a_loss_that_is_not_finite_is_recorded_as_diverged(plan_run, capsys):
    folder = plan_run(overrides={"SOLVER.BASE_LR": 1e30})
    assert worker.main([str(folder.path)]) == worker.DIVERGED
    run = folder.read().model_dump(mode="json")
    assert run["state"] == "diverged"
    assert 0 < run["iteration"] < 6
    assert f"after {run['iteration']} iterations" in run["reason"]
    assert "diverged" in capsys.readouterr().err


def test_a_second_process_is_refused(plan_run, capsys):
    folder = plan_run()
    with folder.lock():
        assert worker.main([str(folder.path)]) == worker.BUSY
    assert "another process" in capsys.readouterr().err
    assert folder.state() == "planned"


def test_weights_that_changed_since_planning_are_refused(write_study, tiny_backbone, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(tiny_backbone.read_bytes())
    study = write_study(arms={"pretrained": {"init": str(weights)}})
    folder = prepare(load_study(study), tmp_path / "output")[0]
    weights.write_bytes(weights.read_bytes() + b"more")
    assert worker.main([str(folder.path)]) == worker.FAILED
    assert "has changed since" in folder.read().reason


def test_a_run_that_goes_on_needs_no_initial_weights(
    write_study, tiny_backbone, tmp_path, assert_same, train_until
):
    """Those of its checkpoint are the run's; the schedule that branches off has them, too."""
    weights = tmp_path / "weights.pth"
    weights.write_bytes(tiny_backbone.read_bytes())
    schedules = [{"iterations": n, "name": f"{n}it", "drops_before_end": [2]} for n in (4, 6)]
    study = write_study(arms={"pretrained": {"init": str(weights)}}, schedules=schedules)
    alone, moved = (prepare(load_study(study), tmp_path / name) for name in ("alone", "moved"))
    for branch, trunk in (alone,):
        assert [worker.main([str(run.path)]) for run in (trunk, branch)] == [0, 0]
    branch, trunk = moved
    train_until(trunk, 3)
    weights.unlink()
    assert [worker.main([str(run.path)]) for run in (trunk, branch)] == [0, 0]
    for one, other in zip(alone, moved, strict=True):
        assert_same(one, other)
        assert other.read().init_report == one.read().init_report
        assert other.read().init_report.missing == ()


@pytest.mark.parametrize("part", ["train", "test"])
def test_data_that_changed_since_planning_are_refused(
    write_study, tiny_shapes, tmp_path, train_until, part
):
    """At the beginning and in a resume, of which run.json would say that it was exact."""
    file, folders = tmp_path / f"{part}.json", []
    original = (tiny_shapes / f"annotations/{part}.json").read_bytes()
    data = {
        one: {"annotations": str(tiny_shapes / f"annotations/{one}.json"), "images": str(folder)}
        for one, folder in (("train", tiny_shapes / "train"), ("test", tiny_shapes / "test"))
    }
    data[part]["annotations"] = str(file)
    file.write_bytes(original)
    study = load_study(write_study(f"changing-{part}.yaml", data=data, seeds=[0, 1]))
    study = dataclasses.replace(study, name=f"changing-{part}")
    folders = prepare(study, tmp_path / "output")
    train_until(folders[0], 3)
    content = json.loads(original)
    content["annotations"].pop()
    file.write_text(json.dumps(content))
    title = "training" if part == "train" else "test"
    for folder in folders:
        before = folder.read().data
        assert worker.main([str(folder.path)]) == worker.FAILED
        assert f"{title} data have changed since this run was planned" in folder.read().reason
        assert (folder.read().data, folder.read().resumes) == (before, ())
    file.write_bytes(original)
    assert worker.main([str(folders[0].path)]) == worker.FINISHED
    assert [(one.iteration, one.exact) for one in folders[0].read().resumes] == [(3, True)]


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint(plan_run, monkeypatch):
    folder = plan_run()
    save = checkpoint.save

    def full(folder, iteration, *rest):
        if iteration == 4:
            raise OSError(28, "No space left on device")
        save(folder, iteration, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        assert worker.main([str(folder.path)]) == worker.FAILED
    assert folder.state() == "failed"
    assert "No space left" in folder.read().reason
    assert [file.name for file in folder.checkpoints.iterdir()] == ["0000002.pth"]
    assert worker.main([str(folder.path)]) == worker.FINISHED
    assert [resume.iteration for resume in folder.read().resumes] == [2]


def test_a_run_json_damaged_meanwhile_ends_the_run_in_a_sentence_with_its_remedy(
    write_study, tmp_path, at_iteration, fork, ended, capfd
):
    study = load_study(write_study())
    [folder] = prepare(study, tmp_path / "output")

    def child():
        trainer.RECORD_SECONDS = -1  # tells run.json the progress with every line of metrics
        at_iteration(2, lambda: folder.run_file.write_text('{"format": 2, "stu'))
        return worker.main([str(folder.path)])

    assert ended(fork(child)) == [worker.FAILED]
    said = capfd.readouterr().err + (tmp_path / "forks.log").read_text()
    assert "Traceback" not in said
    assert said.count(f"{folder.run_file}: not valid JSON") == 1
    assert "delete it and start the study again" in said
    assert checkpoint.path_of(folder, 4).exists()
    with pytest.raises(UserError, match="delete it and start the study again"):
        prepare(study, tmp_path / "output")
    folder.run_file.unlink()
    assert prepare(study, tmp_path / "output") == [folder]
    assert worker.main([str(folder.path)]) == worker.FINISHED
    assert [resume.iteration for resume in folder.read().resumes] == [4]


CASCADE = """
MODEL:
  ROI_HEADS: {NAME: CascadeROIHeads}
  ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: True}
"""


@pytest.fixture
def switched(tmp_path):
    """The last three iterations with Cascade R-CNN."""
    base = Path(__file__).parents[2] / "configs/demo_mask_rcnn_R_18_FPN_gn.yaml"
    config = tmp_path / "cascade.yaml"
    config.write_text(f'_BASE_: "{base}"\n{CASCADE}')
    return {"config": str(config), "last": 3}


@pytest.mark.parametrize("stop_after", [2, 3, 5])
def test_a_run_switches_to_cascade_and_resumes_around_the_switch(
    plan_run, switched, assert_same, stop_after, train_until
):
    """One folder, one curve: plain until iteration 3, and exact whether stopped or not."""
    stopped = plan_run("stopped", switch=switched)
    alone = ALONE.get("switched")
    if alone is None:
        alone = ALONE["switched"] = plan_run("alone", switch=switched)
        assert worker.main([str(alone.path)]) == worker.FINISHED
    run = alone.read().model_dump(mode="json")
    assert run["switch"] == {"at": 3}
    assert run["resumes"] == []
    assert run["iteration"] == 6
    final = checkpoint.load_newest(alone)["model"]
    assert "roi_heads.box_head.2.fc1.weight" in final
    rows = [json.loads(line) for line in alone.metrics_file.read_text().splitlines()]
    assert [row["iteration"] + 1 for row in rows if "loss_cls" in row][-1] == 3
    assert "loss_cls_stage2" in rows[-1]

    train_until(stopped, stop_after)
    assert stopped.read().iteration == stop_after
    assert worker.main([str(stopped.path)]) == worker.FINISHED
    assert_same(alone, stopped)
