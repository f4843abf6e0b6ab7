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
# # Data regimes
#
# The same pair with less and more training data, as in the paper's Figures 7 and 8. `RUNS` is any
# folder that holds a study for each size: set it to your own output. The one here is what
# `scripts/demo_regimes.sh` trains, recorded without checkpoints (`docs/demo.md` says what one seed
# shows). Nothing below needs torch or Detectron2.

# %%
from pathlib import Path

from IPython.display import Image, Markdown

from scratch_vs_pretrain.analysis.figures.curves import loss_figure
from scratch_vs_pretrain.analysis.figures.files import figure_bytes
from scratch_vs_pretrain.analysis.runs.frame import tidy
from scratch_vs_pretrain.analysis.runs.records import find_runs
from scratch_vs_pretrain.analysis.stats.cost import with_costs
from scratch_vs_pretrain.analysis.tables.regimes import less_data_table
from scratch_vs_pretrain.analysis.tables.table import render

RUNS = Path("data/demo_regimes")

# %% [markdown]
# Final box AP of both arms by the number of training images:

# %%
runs = find_runs(RUNS)
Markdown(render(less_data_table(runs), "markdown"))

# %% [markdown]
# AP and training loss, a row for each size. An arm whose training loss is as low and whose AP is
# lower fits its images as well and generalizes worse.

# %%
frame = with_costs(tidy(runs), runs)
Image(figure_bytes(loss_figure(frame), ".png"), width=720)

# %% [markdown]
# How often each image was seen, the loss at the end (the median of the last tenth of what was
# logged) and the final AP:

# %%
frame["images in the set"] = (frame.images / frame.epochs).round().astype(int)
cells = ["images in the set", "arm"]
last = frame[
    frame.iteration > 0.9 * frame.groupby("study", observed=True).iteration.transform("max")
]
loss = last[last.metric == "total_loss"].groupby(cells, observed=True).value.median()
ap = last[last.metric == "bbox/AP"].groupby(cells, observed=True).value.mean()
epochs = frame.groupby(cells, observed=True).epochs.max()
epochs.to_frame("epochs").assign(**{"final loss": loss, "box AP": ap}).round(2)
