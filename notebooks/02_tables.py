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
# # Tables
#
# The tables of a study from its run folders, ready for a paper or a web page. `RUNS` is any folder
# that holds run folders: set it to your own output. The ones here are the recorded runs of
# `docs/miniature.md`, without their checkpoints. `svp table` prints the same on the command line,
# as text, Markdown, LaTeX, HTML, CSV or JSON.

# %%
from scratch_vs_pretrain import conclude, load_runs, table

RUNS = "data/miniature/miniature-baseline"

# %% [markdown]
# Arms and schedules, as in the paper's Table 1:

# %%
runs = load_runs(RUNS)
table(runs)

# %% [markdown]
# Every metric, as in Table 2:

# %%
table(runs, "metrics")

# %% [markdown]
# The gap between the arms, paired by seed, with its intervals:

# %%
table(runs, "gaps")

# %% [markdown]
# A table is data, too: its columns and rows.

# %%
gaps = table(runs, "gaps")
print(gaps.header)
print(gaps.rows[0])

# %% [markdown]
# What these runs say about the paper's six conclusions, which may be nothing. (`svp table RUNS
# --against paper` sets the published numbers beside those of a study that repeats one of the
# paper's experiments.)

# %%
for conclusion in conclude(runs):
    print(f"{conclusion.number}. {conclusion.statement} {conclusion.verdict}")
