import pytest

from scratch_vs_pretrain.analysis.present import tables_text

COCO = {
    "train": {"names": ["coco_2017_train"], "images": 117_266},
    "test": {"names": ["coco_2017_val"], "images": 5000},
}


@pytest.mark.parametrize("kind", ["schedules", "metrics", "large", "less-data", "voc", "summary"])
def test_each_kind_of_table(folders, kind):
    folders.run("scratch")
    folders.run("pretrained")
    assert "scratch" in tables_text(folders.root, kind, "markdown")


@pytest.mark.parametrize(("by", "source"), [("paper", "Table 1"), ("zoo", "MODEL_ZOO.md")])
def test_beside_what_was_published(folders, by, source):
    for arm, ap in (("scratch", 39.5), ("pretrained", 41.0)):
        folder = folders.run(
            arm, curve={}, iterations=270_000, schedule="3x", study="baseline-r50-gn", data=COCO,
            losses=False,
        )  # fmt: skip
        folders.evaluation(folder, 270_000, ap, dataset="coco_2017_val")
    text = tables_text(folders.root, by, "text")
    assert source in text
    assert ("The zoo's own arms differ" in text) == (by == "zoo")
