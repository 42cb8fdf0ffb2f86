"""The base of the errors whose message is one line for the user: what is wrong, and what to do about it."""


class JaxnnError(Exception):
    """An error that needs no traceback: its message is one line that names the cause and the cure."""
