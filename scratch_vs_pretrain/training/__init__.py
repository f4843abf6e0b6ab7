"""One run: trainer, hooks, evaluation, checkpoints; classifier pre-training."""
