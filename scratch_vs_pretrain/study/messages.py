"""What the launcher tells the user while it works."""

import sys


def say(text: str) -> None:
    """Prints a line on stderr."""
    print(f"svp: {text}", file=sys.stderr)
