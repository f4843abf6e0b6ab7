import csv
import io
import json
import math
from html.parser import HTMLParser

import pytest

from scratch_vs_pretrain.analysis.tables import FORMATS, Estimate, Table, render, render_all
from scratch_vs_pretrain.errors import UserError

NASTY = "<script>a|b_$x$\n& 100 %"

TABLE = Table(
    title="demo: AP",
    header=("arm", "iterations", "box AP", "epochs"),
    rows=(
        ("scratch", 540000, Estimate(41.3, 0.25), 72.9),
        (NASTY, None, Estimate(math.nan), math.nan),
        ("difference", None, Estimate(0.2, signed=True), None),
        ("other", 1, Estimate(-0.24, 1.06, signed=True), 1.0),
    ),
    notes=("First note.", f"Second: {NASTY}"),
)


def test_text():
    lines = render(TABLE).splitlines()
    assert lines[0] == "demo: AP"
    assert any(line.split() == ["scratch", "540,000", "41.3", "±", "0.2", "72.9"] for line in lines)
    assert any("+0.2" in line for line in lines)
    assert any("-0.2 ± 1.1" in line for line in lines)
    assert lines[-2] == "First note."
    assert len({len(line) for line in lines[5:9]}) == 1


def test_a_table_and_its_cells_print_as_they_are_read():
    assert str(TABLE) == render(TABLE)
    assert str(Estimate(-0.24, 1.06, signed=True)) == "-0.2 ± 1.1"
    assert str(Estimate(-0.04, signed=True)) == "+0.0"


def test_markdown_cells_stay_cells():
    lines = render(TABLE, "markdown").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(TABLE.rows)
    for line in rows:
        assert line.replace(r"\|", "").count("|") == 5
    assert "<script>" not in render(TABLE, "markdown")
    assert lines[-2] == "- First note."


def test_latex():
    text = render(TABLE, "latex")
    assert r"41.3 $\pm$ 0.2" in text
    assert r"$-$0.2 $\pm$ 1.1" in text
    assert r"100 \%" in text
    assert r"\$x\$" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert text.count("\\\\\n") == 1 + len(TABLE.rows)
    assert all(character not in text for character in "±\N{EN DASH}<>|")


def test_html_is_well_formed_and_escaped():
    class Reader(HTMLParser):
        tags: list[str] = []  # noqa: RUF012
        text = ""

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)

        def handle_data(self, data):
            self.text += data

    reader = Reader()
    reader.feed(render(TABLE, "html"))
    assert "script" not in reader.tags
    assert reader.tags.count("tr") == 1 + len(TABLE.rows)
    assert reader.tags.count("li") == 2
    assert "<script>a|b_$x$ & 100 %" in reader.text


def test_csv_has_numbers_and_keeps_its_notes():
    rows = list(csv.DictReader(io.StringIO(render(TABLE, "csv"))))
    assert list(rows[0]) == ["arm", "iterations", "box AP", "box AP half-width", "epochs", "notes"]
    assert rows[0]["box AP"] == "41.3"
    assert rows[0]["box AP half-width"] == "0.25"
    assert rows[0]["iterations"] == "540000"
    assert (rows[1]["box AP"], rows[1]["epochs"], rows[1]["arm"]) == (
        "",
        "",
        " ".join(NASTY.split()),
    )
    assert float(rows[3]["box AP"]) == -0.24
    assert all(row["notes"].startswith("First note. Second") for row in rows)


@pytest.mark.parametrize("cell", ["=1+1", "@SUM(A1)", "+1", "-cmd"])
def test_csv_text_is_no_formula(cell):
    (row,) = csv.DictReader(io.StringIO(render(Table("t", ("arm",), ((cell,),)), "csv")))
    assert row["arm"] == f"'{cell}"


EMPTY = Table("demo", ("arm", "box AP", "gap"), (), ("Left out: scratch 600it.",))


@pytest.mark.parametrize("form", FORMATS)
def test_table_without_rows_says_why_in_each_format(form):
    text = render(EMPTY, form)
    assert "box" in text
    assert "Left out: scratch 600it." in text
    assert "svp status shows how far" in text


def test_table_without_rows_is_valid_latex_and_csv():
    assert r"\begin{tabular}{lll}" in render(EMPTY, "latex")
    (row,) = csv.DictReader(io.StringIO(render(EMPTY, "csv")))
    assert (row["arm"], row["box AP"], row["gap"]) == ("", "", "")
    assert row["notes"].endswith("Left out: scratch 600it.")


# Of "a" the notes say something, "b" has a column more and seeds for an interval, "c" no rows.
SEVERAL = {
    "a": Table("a: AP", ("arm", "box AP"), (("scratch", Estimate(1.5)),), ("One seed.",)),
    "b": Table("b: AP", ("arm", "seeds", "box AP"), (("scratch", 3, Estimate(2.5, 0.5)),)),
    "c": EMPTY,
}


def test_several_tables_are_one_csv_that_names_the_study():
    rows = list(csv.reader(io.StringIO(render_all(SEVERAL, "csv"))))
    assert rows[0] == [
        "study", "arm", "box AP", "box AP half-width", "seeds", "gap", "notes"
    ]  # fmt: skip
    assert rows[1:3] == [
        ["a", "scratch", "1.5", "", "", "", "One seed."],
        ["b", "scratch", "2.5", "0.5", "3", "", ""],
    ]
    assert rows[3][:6] == ["c", "", "", "", "", ""]
    assert "Left out: scratch 600it." in rows[3][6]
    assert len(rows) == 4


def test_several_tables_are_one_list_in_json():
    found = json.loads(render_all(SEVERAL, "json"))
    assert [one.pop("study") for one in found] == ["a", "b", "c"]
    assert found == [json.loads(render(table, "json")) for table in SEVERAL.values()]
    assert render_all({"a": TABLE}, "json") == render(TABLE, "json")


def test_several_tables_follow_each_other_where_people_read_them():
    for form in ("text", "markdown", "latex", "html"):
        assert render_all(SEVERAL, form) == "\n".join(render(t, form) for t in SEVERAL.values())


def test_unknown_format():
    with pytest.raises(UserError, match=r"'excel'.*markdown"):
        render(TABLE, "excel")


def test_json():
    content = json.loads(render(TABLE, "json"))
    assert content["columns"] == list(TABLE.header)
    assert content["rows"][0] == ["scratch", 540000, {"value": 41.3, "half_width": 0.25}, 72.9]
    assert content["rows"][1] == [NASTY, None, {"value": None, "half_width": None}, None]
    assert content["notes"] == list(TABLE.notes)


def test_latex_that_is_too_wide_is_scaled():
    table = Table("t", ("a", "b"), (("x" * 80, "y" * 80),))
    text = render(table, "latex")
    assert "\\usepackage{booktabs,adjustbox}" in text
    assert "\\begin{adjustbox}{max width=\\textwidth}" in text
    assert text.count("{") == text.count("}")
