"""docs/miniature.md says what its recorded runs say, and nothing else."""

import csv
import re
from pathlib import Path

import pytest

from scratch_vs_pretrain.analysis.registry import tables_text
from scratch_vs_pretrain.analysis.tables import published

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/miniature.md").read_text()
RECORDED = ROOT / "notebooks/data/miniature"
BLOCK = re.compile(r"^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[+-]?\d+\.\d+(?![\d.]*\w)")


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def test_every_output_is_what_its_command_prints(scripts):
    from refresh_page import QUOTED, refreshed

    assert len(QUOTED.findall(PAGE)) == len(BLOCK.findall(PAGE)) > 3
    assert refreshed(PAGE) == PAGE


def test_every_number_of_the_text_is_in_an_output_or_the_paper():
    outputs = "\n".join(BLOCK.findall(PAGE))
    with open(Path(published.__file__).with_name("paper_results.csv")) as file:
        paper = {row["value"] for row in csv.DictReader(file)}
    text = BLOCK.sub("", PAGE)
    cells = [line.split("|")[2] for line in text.splitlines() if re.match(r"\| \d\.", line)]
    assert len(cells) == 6
    for cell in cells:
        text = text.replace(f"|{cell}|", "|")
        assert set(NUMBER.findall(cell)) <= paper
    numbers = NUMBER.findall(text)
    assert [number for number in numbers if number not in outputs] == []
    assert len(numbers) > 10


def test_recorded_runs_are_small():
    assert sum(file.stat().st_size for file in RECORDED.rglob("*") if file.is_file()) < 3e6
    assert {file.name for file in RECORDED.rglob("*.*")} - {"run.json", "metrics.json"} == {
        file.name for file in RECORDED.rglob("evaluations/*.json")
    }


def test_a_recorded_copy_gives_the_same_tables(scripts, tmp_path):
    from record_runs import record

    demo = ROOT / "notebooks/data/demo"
    assert len(record(demo, tmp_path)) == 6
    assert record(demo, tmp_path) == []
    killed = next(tmp_path.rglob("run.json"))  # is written last
    killed.unlink()
    assert record(demo, tmp_path) == [killed.parent]
    for kind in ("metrics", "gaps", "samples"):
        assert tables_text(tmp_path, kind, "text") == tables_text(demo, kind, "text")
