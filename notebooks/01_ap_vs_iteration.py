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
# # Does pre-training help?
#
# The answer of a study and the curves behind it. `RUNS` is any folder that holds the runs of one
# study: set it to your own output. The ones here are the recorded runs of `docs/miniature.md`,
# without their checkpoints. Nothing below needs torch or Detectron2.

# %%
from scratch_vs_pretrain import answer, figure, load_runs, table

RUNS = "data/miniature/miniature-baseline"

# %%
runs = load_runs(RUNS)
print(answer(runs).text())

# %% [markdown]
# The curves, with a band from the lowest to the highest seed. Dotted: the learning rate drops.

# %%
figure(runs, "ap")

# %% [markdown]
# Every number of every run is in one tidy table:

# %%
frame = runs.frame()
frame[["arm", "seed", "iteration", "metric", "value", "state"]].sample(5, random_state=0)

# %% [markdown]
# By how much scratch is behind each other arm at each evaluation of the longest schedule, in box
# AP, over seeds:

# %%
scratch = next(run.arm for run in runs if run.from_scratch)
longest = frame.schedule[frame.iteration.idxmax()]
box = frame[(frame.metric == "bbox/AP") & (frame.schedule == longest)]
ap = box.pivot_table("value", ["iteration", "seed"], "arm", observed=True)
behind = ap.drop(columns=scratch).sub(ap[scratch], axis=0)
behind.groupby("iteration").agg(["mean", "min", "max"]).round(1)

# %% [markdown]
# Iterations are one way to count what training costs. In pixels the pretrained arm begins where its
# pre-training ended:

# %%
figure(runs, "ap", x="pixels")

# %% [markdown]
# From where on scratch has caught up, which may be nowhere:

# %%
table(runs, "catch-up")

# %% [markdown]
# And where the difference lies: the gap at each IoU threshold.

# %%
figure(runs, "iou")
