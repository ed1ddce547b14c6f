"""What a user can mend: `main` prints it as one line, and everything else as a traceback."""


class UserError(ValueError):
    """One line that names the field as it is typed, its value, what was expected and what to do."""


class NotFound(UserError, FileNotFoundError):
    """A file or folder that the user names is not there."""
