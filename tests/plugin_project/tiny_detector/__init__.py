"""A project of a user's own: docs/your_detector.md shows it."""

__version__ = "1.0"
