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
# that holds run folders: set it to your own output. The one here is a recorded run of
# `svp demo --seeds 3` without its checkpoints. `svp table` prints the same on the command line.

# %%
from pathlib import Path

from IPython.display import Markdown

from scratch_vs_pretrain.analysis.runs.records import load_runs
from scratch_vs_pretrain.analysis.tables.pairing import gap_table
from scratch_vs_pretrain.analysis.tables.pairs import metrics_table, schedules_table
from scratch_vs_pretrain.analysis.tables.paper_numbers import published
from scratch_vs_pretrain.analysis.tables.table import render

RUNS = Path("data/demo")

# %% [markdown]
# Arms and schedules, as in the paper's Table 1:

# %%
runs = load_runs(RUNS)
Markdown(render(schedules_table(runs), "markdown"))

# %% [markdown]
# Every metric, as in Table 2:

# %%
Markdown(render(metrics_table(runs), "markdown"))

# %% [markdown]
# The gap between the arms, paired by seed, with its intervals:

# %%
Markdown(render(gap_table(runs), "markdown"))

# %% [markdown]
# Any of them as LaTeX, HTML or CSV:

# %%
print(render(gap_table(runs), "latex"))

# %% [markdown]
# Numbers that were published, with where they stand. `svp table RUNS --against paper` sets them
# beside those of a study that repeats one of the paper's experiments.

# %%
for number in published("baseline", backbone="R50", schedule="2x"):
    print(number.init, number.metric, number.value, f"({number.source})")
