"""The error for bad input, and reasons in one line."""


class InputError(Exception):
    """Bad input: one line that names the file or flag and the remedy."""


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """The message of an exception of a library in one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit]
