"""The error that a user can mend."""


class InputError(Exception):
    """Something the user can mend: one line that names the file or flag and what to do about it."""
