"""One run: trainer, metrics, checkpoints, several processes."""
