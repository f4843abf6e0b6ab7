"""docs/experiments.md states what the study files plan and what the paper published."""

import csv
import re
from pathlib import Path

import pytest

from scratch_vs_pretrain.study.plan import plan
from scratch_vs_pretrain.study.spec import load_study

REPOSITORY = Path(__file__).parents[2]
PAPER = REPOSITORY / "configs" / "studies" / "paper"
RESULTS = REPOSITORY / "scratch_vs_pretrain" / "analysis" / "tables" / "paper_results.csv"
ROW = re.compile(r"^\| \[`(.+?)`\]\((.+?)\) \| (.+?) \| (.+?) \| ([\d,]+) \| ([\d.]+) \|$", re.M)
MEASURED_PER_SECOND = 41
# Two arms at five lengths; and figures without numbers.
COUNT = {
    "baseline_r50_gn": 10,
    "baseline_r101_gn": 10,
    "baseline_r50_syncbn": 0,
    "enhanced_r50_train_aug": 0,
}


def rows():
    return ROW.findall((REPOSITORY / "docs" / "experiments.md").read_text())


def test_every_study_has_a_row():
    assert sorted(row[0] for row in rows()) == sorted(file.stem for file in PAPER.glob("*.yaml"))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_row_is_the_plans_and_the_papers(row):
    name, link, section, expected, images, days = row
    file = (REPOSITORY / "docs" / link).resolve()
    assert file == PAPER / f"{name}.yaml"
    planned = plan(load_study(file))
    every = [*planned.rows, *(planned.search.rows if planned.search else ())]
    total = sum(one.images for one in every)
    assert int(images.replace(",", "")) == total
    assert float(days) == pytest.approx(total / (MEASURED_PER_SECOND * 86_400), abs=0.05)
    with RESULTS.open() as results:
        published = {one["value"] for one in csv.DictReader(results) if one["source"] in section}
    numbers = re.findall(r"\d+\.\d", expected.replace("IoU 0.5", ""))
    assert set(numbers) <= published
    assert len(numbers) == COUNT.get(name, len(numbers))
    assert numbers or expected in ("curves only", "bars without numbers")
