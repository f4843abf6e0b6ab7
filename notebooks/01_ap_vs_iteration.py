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
# # AP versus iterations
#
# Both arms of a study over the length of training, as in the paper's Figure 1. `RUNS` is any folder
# that holds the runs of one study: set it to your own output. The one here is a recorded run of
# `svp demo --seeds 3` without its checkpoints. Nothing below needs torch or Detectron2.

# %%
from pathlib import Path

from IPython.display import Image, Markdown

from scratch_vs_pretrain.analysis.figures.curves import ap_figure
from scratch_vs_pretrain.analysis.figures.files import figure_bytes
from scratch_vs_pretrain.analysis.figures.iou_gap import iou_figure
from scratch_vs_pretrain.analysis.runs.frame import tidy
from scratch_vs_pretrain.analysis.runs.records import find_runs
from scratch_vs_pretrain.analysis.stats.cost import with_costs
from scratch_vs_pretrain.analysis.tables.pairing import catch_up_table
from scratch_vs_pretrain.analysis.tables.table import render

RUNS = Path("data/demo")

# %% [markdown]
# Every number of every run in one tidy table:

# %%
runs = find_runs(RUNS)
frame = with_costs(tidy(runs), runs)
frame[["arm", "seed", "iteration", "metric", "value", "state"]].sample(5, random_state=0)

# %% [markdown]
# The curves. Pre-training leads early; training from scratch closes in.

# %%
Image(figure_bytes(ap_figure(frame), ".png"), width=720)

# %% [markdown]
# The lead of the pretrained arm at each evaluation, in box AP, over seeds:

# %%
box = frame[frame.metric == "bbox/AP"]
ap = box.pivot_table("value", ["iteration", "seed"], "arm", observed=True)
(ap.pretrained - ap.scratch).groupby("iteration").agg(["mean", "min", "max"]).round(1)

# %% [markdown]
# Iterations are one way to count what training costs. In pixels the pretrained arm begins where its
# pre-training ended:

# %%
Image(figure_bytes(ap_figure(frame, x="pixels"), ".png"), width=720)

# %% [markdown]
# From where on scratch has caught up, which may be nowhere:

# %%
Markdown(render(catch_up_table(runs), "markdown"))

# %% [markdown]
# And where the difference lies: the gap at each IoU threshold.

# %%
Image(figure_bytes(iou_figure(frame), ".png"), width=720)
