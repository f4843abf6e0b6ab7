"""Run folders, read."""

# What to make of a log in which training begins again; see frame.py.
RESTARTS = ("last", "split", "refuse")
