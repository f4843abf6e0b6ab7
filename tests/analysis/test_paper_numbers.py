from pathlib import Path

import pytest

from scratch_vs_pretrain.analysis.tables import paper_numbers
from scratch_vs_pretrain.analysis.tables.paper_numbers import (
    PaperStudy,
    all_published,
    paper_study,
    published,
)
from scratch_vs_pretrain.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "paper_results.csv"


def test_every_row_is_read():
    assert len(all_published()) == 91
    assert all(0 < number.value < 100 and number.source for number in all_published())


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is absent")
def test_packaged_copy_is_the_original():
    packaged = Path(paper_numbers.__file__).with_name(paper_numbers.FILES["paper"])
    assert packaged.read_bytes() == SHARED.read_bytes()


def test_numbers_are_found_by_their_fields():
    (number,) = published("baseline", backbone="R50", init="scratch", schedule="2x")
    assert (number.value, number.source, number.iterations) == (36.8, "Table 1", 180_000)
    assert len(published("baseline", backbone="R101", norm=None)) == 10
    assert published("baseline", backbone="R50", schedule="9x") == ()
    (number,) = published("less_data", train_set="coco_10k", init="scratch")
    assert (number.iterations, number.schedule, number.value) == (220_000, "", 25.9)


def test_unknown_experiment():
    with pytest.raises(UserError, match=r"'imagenet'.*baseline.*vgg"):
        published("imagenet")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baseline-r50-gn", PaperStudy("baseline", "R50", "GN")),
        ("baseline_R101", PaperStudy("baseline", "R101", "GN")),
        ("large_x152", PaperStudy("large", "X152-8x32d", "GN")),
        ("large", PaperStudy("large", None, "GN")),
        ("vgg16", PaperStudy("vgg", "VGG16", "none")),
        ("less-data-10k", PaperStudy("less_data", "R50", "GN")),
        ("voc.r101", PaperStudy("voc", "R101", "GN")),
    ],
)
def test_study_is_known_by_its_name(name, expected):
    assert paper_study(name) == expected


@pytest.mark.parametrize("name", ["demo", "vocabulary", ""])
def test_study_that_is_none_of_the_papers(name):
    with pytest.raises(UserError, match="none of the paper's"):
        paper_study(name)


def test_zoo_numbers_name_their_config():
    numbers = published("baseline", by="zoo", norm="GN", init="scratch", schedule="3x")
    assert {number.metric: number.value for number in numbers} == {"bbox/AP": 39.9, "segm/AP": 36.6}
    assert all("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml" in number.source for number in numbers)


def test_syncbn_is_not_compared_with_gn():
    match = paper_study("baseline-r50-syncbn")
    assert match.norm == "SyncBN"
    assert published("baseline", norm=match.norm) == ()
    assert published("baseline", by="zoo", norm=match.norm)
