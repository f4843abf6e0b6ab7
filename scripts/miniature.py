#!/usr/bin/env python
"""Makes what the studies of configs/studies/miniature share: pictures, and a pre-trained backbone.

    uv run python scripts/miniature.py
    uv run svp run configs/studies/miniature/baseline.yaml --jobs 2 --output output/miniature \\
        --weights pretrained=output/miniature/backbone.pth

Everything goes to output/miniature; what is there already is left as it is.
"""

import argparse
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.config import load_config
from scratch_vs_pretrain.data.shapes import (
    ClassificationSpec,
    ShapesSpec,
    make_shapes,
)
from scratch_vs_pretrain.pretraining import PretrainSpec
from scratch_vs_pretrain.pretraining.pretrain import pretrain

ROOT = Path(__file__).parents[1]
# Objects that wear their class's coat always, on quiet backgrounds, are learnt in some hundreds of
# iterations. The backbone learns all eight classes, detectors two of them.
EASY: dict[str, Any] = {
    "typical": 1.0,
    "texture": 1.0,
    "background": 0.1,
    "clutter": 1,
    "noise": 3.0,
    "blur": 0.4,
    "rotation": 0.15,
}
PICTURES = ShapesSpec(
    train=10_000,
    test=300,
    image_size=64,
    objects=(2, 4),
    object_size=(18, 40),
    classes=2,
    keypoints=True,
    **EASY,
)
OBJECTS = ClassificationSpec(train=4000, test=400, image_size=48, object_size=(22, 46), **EASY)
RECIPE = PretrainSpec(epochs=10, image_size=48, batch_size=64, learning_rate=0.02, min_area=0.6)


def main() -> None:
    """Makes what is not there yet."""
    parser = argparse.ArgumentParser(description="Make pictures and backbones for the miniature.")
    parser.add_argument("--output", type=Path, default=Path("output/miniature"))
    parser.add_argument(
        "--vgg", action="store_true", help="vgg.pth for no_norm.yaml instead of backbone.pth"
    )
    options = parser.parse_args()
    output = options.output
    make_shapes(output / "shapes", PICTURES)
    make_shapes(output / "classification", OBJECTS)
    backbone = output / ("vgg.pth" if options.vgg else "backbone.pth")
    detector = "faster_rcnn_VGG_16" if options.vgg else "mask_rcnn_R_18_FPN_gn"
    if not backbone.exists():
        cfg = load_config(ROOT / "configs" / f"miniature_{detector}.yaml")
        result = pretrain(cfg, output / "classification", backbone, RECIPE)
        print(f"the classifier is right on {result.accuracy:.1f} % of the validation pictures")


if __name__ == "__main__":
    main()
