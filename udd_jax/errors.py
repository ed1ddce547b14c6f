"""What a user can mend: `main` prints it as one line, and everything else as a traceback."""


class UserError(ValueError):
    """One line that names the field as it is typed, its value, what was expected and what to do."""


class NotFound(UserError, FileNotFoundError):
    """A file or folder that the user names is not there."""


def first_line(error: BaseException) -> str:
    """What an error of a library says: its first line, or else the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
