"""Notebooks are what their scripts say, were executed, and show their figures."""

import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(NOTEBOOKS.glob("*.py"))


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.stem)
def test_notebooks_use_the_public_functions_alone(script):
    assert re.findall(r"^(?:from|import) +(\S+)", script.read_text(), re.MULTILINE) == [
        "scratch_vs_pretrain"
    ]


def test_every_notebook_has_a_script():
    assert [file.stem for file in sorted(NOTEBOOKS.glob("*.ipynb"))] == [f.stem for f in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.stem)
def test_notebook_is_its_script_executed(script):
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    assert cells(notebook) == cells(jupytext.read(script))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # nbmake leaves the first cell, the imports, without a number.
    counts = [cell.execution_count for cell in code][1:]
    assert None not in counts
    assert counts == list(range(counts[0], counts[0] + len(counts)))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    drawing = [cell for cell in code if cell.source.startswith("figure(")]
    assert all("image/png" in cell.outputs[0].data for cell in drawing)
    assert str(NOTEBOOKS.parent) not in str(outputs)
