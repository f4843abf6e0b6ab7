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
# ones here are the recorded runs of `docs/miniature.md`, without their checkpoints. Nothing below
# needs torch or Detectron2. How samples are counted: `docs/budgets.md`.

# %%
from scratch_vs_pretrain import figure, load_runs, table

RUNS = "data/miniature/miniature-baseline"

# %% [markdown]
# The table: what the weights of an arm had seen before the study, what its runs have seen in
# training (means over seeds), and both.

# %%
runs = load_runs(RUNS)
table(runs, "samples")

# %% [markdown]
# The figure:

# %%
figure(runs, "samples")

# %% [markdown]
# How many times as much as scratch each arm has seen, all in all:

# %%
# An arm's last row is the sum.
totals = {row[0]: row[3:] for row in table(runs, "samples").rows}
scratch = totals[next(run.arm for run in runs if run.from_scratch)]
for arm, total in totals.items():
    images, instances, pixels = (one / other for one, other in zip(total, scratch, strict=True))
    print(f"{arm}: {images:.1f}x images, {instances:.1f}x instances, {pixels:.1f}x pixels")
