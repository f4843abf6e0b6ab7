#!/usr/bin/env python
"""Makes what the studies of configs/studies/miniature share: pictures, and a pre-trained backbone.

    uv run python scripts/miniature.py
    uv run svp run configs/studies/miniature/baseline.yaml --jobs 2 --output output/miniature \\
        --weights pretrained=output/miniature/backbone.pth

Everything goes to output/miniature; what is there already is left as it is.
"""

from pathlib import Path

from scratch_vs_pretrain.config import load_config
from scratch_vs_pretrain.data.shapes import ShapesSpec, make_classification, make_shapes
from scratch_vs_pretrain.pretraining.pretrain import pretrain
from scratch_vs_pretrain.study.demo import FULL

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Makes 20,000 training and 300 test pictures, and the demo's backbone."""
    output = ROOT / "output" / "miniature"
    make_shapes(output / "shapes", ShapesSpec(train=20_000, test=300))
    make_classification(output / "classification", FULL.classification)
    backbone = output / "backbone.pth"
    if not backbone.exists():
        cfg = load_config(ROOT / "configs" / "demo_mask_rcnn_R_18_FPN_gn.yaml")
        result = pretrain(cfg, output / "classification", backbone, FULL.pretraining)
        print(f"the classifier is right on {result.accuracy:.1f} % of the validation pictures")


if __name__ == "__main__":
    main()
