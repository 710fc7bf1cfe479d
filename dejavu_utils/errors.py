"""The error that a user can mend, and reasons in one line."""


class InputError(Exception):
    """Something the user can mend: one line that names the file or flag and what to do about it."""


def one_line(error, limit=300):
    """The message of an exception of a library in one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit]
