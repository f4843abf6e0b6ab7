import pytest

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.parse import parse_study
from scratch_vs_pretrain.study.sections import Data, DataFiles, VocTree


@pytest.fixture
def read_data(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    for split in ("trainval", "val"):
        listing = tmp_path / "tree" / "ImageSets" / "Main" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("1\n")
    (tmp_path / "base.yaml").touch()
    study = {
        "name": "tiny",
        "base": "base.yaml",
        "arms": {"scratch": {"init": "scratch"}},
        "schedules": ["2x"],
    }
    return lambda data: parse_study({**study, "data": data}, tmp_path / "study.yaml", {}).data


FILES = {"annotations": "a.json", "images": "."}
TREE = {"voc": "tree", "split": "val"}


def test_coco_files(read_data, tmp_path):
    files = DataFiles(tmp_path / "a.json", tmp_path)
    assert read_data({"train": FILES, "test": FILES}) == Data((files,), files)


def test_voc_trees(read_data, tmp_path):
    root = tmp_path / "tree"
    train = [{"voc": "tree", "split": "trainval", "year": 2007}, TREE]
    classes = ["ring", "disc"]
    assert read_data({"train": train, "test": TREE, "classes": classes}) == Data(
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
        ({"train": TREE, "test": {**TREE, "voc": "no"}}, r"data\.test\.voc: .*no: no such folder"),
        (
            {"train": TREE, "test": {**TREE, "year": 2010}},
            "unknown year 2010; known are 2007, 2012",
        ),
        ({"train": TREE, "test": {**TREE, "images": "."}}, "unknown key data.test.images"),
        ({"train": {**FILES, "split": "val"}, "test": FILES}, "give annotations and images, or"),
        ({"train": {**FILES, "annotations": "b.json"}, "test": FILES}, r"b\.json: no such file"),
    ],
)
def test_what_is_refused(read_data, value, message):
    with pytest.raises(UserError, match=message):
        read_data(value)
