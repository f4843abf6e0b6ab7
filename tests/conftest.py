"""Every test may import Detectron2, and computes on one thread so that it is repeatable."""

import os
from pathlib import Path

# Of this process and of those that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
import yaml

from scratch_vs_pretrain import _detectron2

_detectron2.prepare()
torch.set_num_threads(1)

DEMO_CONFIG = Path(__file__).parents[1] / "configs/demo_mask_rcnn_R_18_FPN_gn.yaml"


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory):
    """A folder with a `shapes` set of 12 training and 4 test images of 64 pixels."""
    from scratch_vs_pretrain.data.scenes import ShapesSpec
    from scratch_vs_pretrain.data.shapes import make_shapes

    folder = tmp_path_factory.mktemp("data") / "shapes"
    spec = ShapesSpec(train=12, test=4, image_size=64, object_size=(16, 40), objects=(1, 3))
    make_shapes(folder, spec, progress=False)
    return folder


@pytest.fixture
def write_study(tiny_shapes, tmp_path):
    """Writes a study that trains in seconds.

    Keyword arguments replace its top-level fields; None leaves one out.
    """

    def write(name="tiny.yaml", **fields):
        overrides = {
            "INPUT.MIN_SIZE_TRAIN": [64],
            "INPUT.MIN_SIZE_TEST": 64,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.WARMUP_ITERS": 2,
            "SOLVER.CHECKPOINT_PERIOD": 2,
            "SVP.LOG_PERIOD": 2,
            "MODEL.FPN.OUT_CHANNELS": 32,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
            "TEST.DETECTIONS_PER_IMAGE": 10,
            **fields.pop("overrides", {}),
        }
        study = {
            "name": "tiny",
            "base": str(DEMO_CONFIG),
            "arms": {"scratch": {"init": "scratch"}},
            "schedules": [{"iterations": 6, "name": "short"}],
            "overrides": overrides,
            "data": {
                part: {
                    "annotations": str(tiny_shapes / f"annotations/{part}.json"),
                    "images": str(tiny_shapes / part),
                }
                for part in ("train", "test")
            },
            **fields,
        }
        study = {key: value for key, value in study.items() if value is not None}
        path = tmp_path / name
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory):
    """Weights that fill the backbone of :func:`write_study`'s studies."""
    from scratch_vs_pretrain.config import load_config
    from scratch_vs_pretrain.modeling.backbone import build_bottom_up
    from scratch_vs_pretrain.modeling.weights import write_backbone

    path = tmp_path_factory.mktemp("weights") / "backbone.pth"
    torch.manual_seed(7)
    write_backbone(path, build_bottom_up(load_config(DEMO_CONFIG)).state_dict(), {})
    return path
