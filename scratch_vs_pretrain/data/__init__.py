"""Data sets, and the stream of training batches."""
