"""Classifier pre-training of a backbone."""
