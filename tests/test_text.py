"""Hostile names, each shown by what would obey them: terminal, spreadsheet, LaTeX, browser."""

import csv
import html
import json
import os
import pty
import shutil
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain.analysis.tables import Estimate, Table, render
from scratch_vs_pretrain.text import FORMS, clean, printable

HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x9b2J",
    "bidi": "abc\u202egnp.exe\u2066",
    "line": "a\nsvp: finished\r",
    "formula": "=cmd|' /C calc'!A0",
    "padded": " \t@SUM(1)",
    "latex": r"\input{/etc/passwd}\write18{id} $x_1^2$ ~ # % & {",
    "script": "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>",
    "letters": "\u65e5\u672c \u03b1 \u0141\u00f3d\u017a \u0127 \U0001f600 \u00ab\u2026\u00bb",
    "surrogate": "half \ud800",
}
NAMES = st.one_of(st.text(), st.sampled_from(list(HOSTILE.values())))


@given(NAMES, st.sampled_from(FORMS))
def test_what_is_cleaned_is_one_line_of_plain_signs(name, form):
    text = clean(name, form)
    assert text.isprintable()
    assert not any(unicodedata.category(sign).startswith("C") for sign in text)


@given(st.text(st.characters(categories=("L", "N"))))
def test_plain_words_stay_as_they_are(name):
    # pdflatex has no sign for most letters.
    assert all(clean(name, form) == name for form in FORMS if form != "latex" or name.isascii())


@given(NAMES)
def test_no_cell_is_computed(name):
    """OWASP's rule for CSV injection."""
    assert clean(name, "csv")[:1] not in {"=", "+", "-", "@", "\t", "\r"}


@given(NAMES)
def test_html_reads_as_the_text(name):
    assert html.unescape(clean(name, "html")) == clean(name)
    assert not set(clean(name, "html")) & set("<>\"'")


def hostile_table() -> Table:
    header = ("arm", *HOSTILE.values())
    cells = tuple(HOSTILE.values())
    return Table(HOSTILE["script"], header, ((Estimate(1.5), *cells),), cells)


def test_csv_in_a_csv_reader(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text(render(hostile_table(), "csv"))
    with file.open(newline="") as lines:
        rows = list(csv.reader(lines))
    assert len(rows) == 2
    assert len(set(map(len, rows))) == 1
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)


@pytest.fixture
def study(tmp_path):
    """A study with hostile text in every name that its files carry."""
    folder = tmp_path / "study" / "a" / "s" / "seed0"
    (folder / "evaluations").mkdir(parents=True)
    bad = "".join(text for name, text in HOSTILE.items() if name != "surrogate")
    run = {
        "format": 2, "study": bad, "description": bad, "arm": bad, "schedule": bad, "seed": 0,
        "state": "failed", "reason": bad, "iterations": 9, "images_per_batch": 1, "tuned_on": bad,
        "init": {"name": bad}, "arm_order": [bad], "provenance": {"device": bad, "host": bad},
        "data": {"train": {"names": [bad]}, "test": {"names": [bad]}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    tasks = {"bbox": {"per_class": {bad: 1.0}, bad: 1.0}}
    scores = {"iteration": 9, "dataset": bad, "tasks": tasks}
    (folder / "evaluations" / "0000009.json").write_text(json.dumps(scores))
    (tmp_path / "study" / "b" / "s").mkdir(parents=True)
    shutil.copytree(folder, tmp_path / "study" / "b" / "s" / "seed0")
    return tmp_path / "study"


@pytest.mark.parametrize("command", ["status", "table", "conclude", "answer", "errors"])
def test_nothing_reaches_the_terminal_that_it_would_obey(study, command):
    main, other = pty.openpty()
    line = [sys.executable, "-m", "scratch_vs_pretrain.cli", command, str(study)]
    with subprocess.Popen(line, stdout=other, stderr=other, stdin=subprocess.DEVNULL) as process:
        os.close(other)
        shown = b""
        try:
            while part := os.read(main, 65536):
                shown += part
        except OSError:  # the other end is closed
            pass
    os.close(main)
    assert process.returncode in (0, 1, 2)
    text = shown.decode()
    assert "x1b" in text or "no run" in text
    assert all(line.isprintable() for line in text.split("\r\n"))


def test_latex(tmp_path):
    text = render(hostile_table(), "latex")
    assert r"\input" not in text
    assert r"\write18" not in text
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here")
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,adjustbox}\\usepackage[T1]{fontenc}"
        f"\\begin{{document}}{text}\\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_html_in_a_browser(study, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser here")
    page = tmp_path / "page.html"
    page.write_text(f"<title>harmless</title>{render(hostile_table(), 'html')}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [browser, *options, profile, "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "<title>harmless</title>" in done.stdout
    assert "<script>" not in done.stdout
    assert "&lt;script&gt;" in done.stdout
    assert "\u202e" not in done.stdout


def test_printable_writes_out_what_cannot_be_seen():
    assert printable("a\x1b\u202eb\ud800ü") == r"a\x1b\u202eb\ud800ü"
