"""The one exception that a user is meant to read, and how the program speaks while it works."""

import sys


class UserError(Exception):
    """Bad input. The message is one sentence that names the file, key or line and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """


def say(text: str) -> None:
    """Prints a line on stderr."""
    print(f"svp: {text}", file=sys.stderr)
