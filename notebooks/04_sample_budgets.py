# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sample budgets
#
# Images, instances and pixels that each arm has seen, pre-training included, as in the paper's
# Figure 2. `RUNS` is any folder that holds the runs of one study: set it to your own output. The
# one here is a recorded run of `svp demo --seeds 3` without its checkpoints. Nothing below needs
# torch or Detectron2. How samples are counted: `docs/budgets.md`.

# %%
from pathlib import Path

from IPython.display import Image, Markdown

from scratch_vs_pretrain.analysis.figures.budget_figure import samples_figure
from scratch_vs_pretrain.analysis.figures.files import figure_bytes
from scratch_vs_pretrain.analysis.runs.records import load_runs
from scratch_vs_pretrain.analysis.stats.samples import budget_table, budgets
from scratch_vs_pretrain.analysis.tables.table import render

RUNS = Path("data/demo")

# %% [markdown]
# The table: what the weights of an arm had seen before the study, what its runs have seen in
# training (means over seeds), and both.

# %%
seen = budgets(load_runs(RUNS))
Markdown(render(budget_table(seen), "markdown"))

# %% [markdown]
# The figure:

# %%
Image(figure_bytes(samples_figure(seen), ".png"), width=900)

# %% [markdown]
# How many times as much the pretrained arms have seen, all in all:

# %%
scratch = next(row.total for row in seen.rows if not row.pretraining.counts.images)
for row in seen.rows:
    images, instances, pixels = (
        getattr(row.total, unit) / getattr(scratch, unit)
        for unit in ("images", "instances", "pixels")
    )
    print(
        f"{row.arm} {row.schedule}: {images:.1f}x the images, "
        f"{instances:.1f}x the instances, {pixels:.1f}x the pixels of scratch"
    )
