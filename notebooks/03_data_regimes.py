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
# folder that holds a study of several sizes, or a study for each: set it to your own output. The
# one here is recorded without checkpoints (`docs/miniature.md` says what it shows). Nothing below
# needs torch or Detectron2.

# %%
from scratch_vs_pretrain import figure, load_runs, table

RUNS = "data/miniature/miniature-less-data"

# %% [markdown]
# Final box AP of both arms by the number of training images:

# %%
runs = load_runs(RUNS)
table(runs, "less-data")

# %% [markdown]
# Drawn, with what pre-training is worth in images:

# %%
figure(runs, "sizes")

# %% [markdown]
# AP and training loss, a row for each size. An arm whose training loss is as low and whose AP is
# lower fits its images as well and generalizes worse.

# %%
figure(runs, "loss")

# %% [markdown]
# How often each image was seen, the loss at the end (the median of the last tenth of what was
# logged) and the final AP:

# %%
frame = runs.frame()
frame["images in the set"] = (frame.images / frame.epochs).round().astype(int)
cells = ["images in the set", "arm"]
last = frame[
    frame.iteration > 0.9 * frame.groupby("study", observed=True).iteration.transform("max")
]
loss = last[last.metric == "total_loss"].groupby(cells, observed=True).value.median()
ap = last[last.metric == "bbox/AP"].groupby(cells, observed=True).value.mean()
epochs = frame.groupby(cells, observed=True).epochs.max()
epochs.to_frame("epochs").assign(**{"final loss": loss, "box AP": ap}).round(2)
