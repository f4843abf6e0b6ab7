"""Run folders, read."""

# What to make of a log in which training begins again; see collect.py.
RESTARTS = ("last", "split", "refuse")
