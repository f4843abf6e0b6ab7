"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input. The message is one sentence that names the file, key or line and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """
