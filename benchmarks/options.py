"""Values on a command line, and errors in one line."""

import ast
import sys

from udd_jax.errors import UserError


def value(text: str):
    """A Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def named(fields) -> dict:
    """{name: value} of texts NAME=VALUE."""
    return {name: value(text) for name, _, text in (field.partition("=") for field in fields)}


def change(config, fields) -> None:
    """Sets the fields of a config that texts FIELD=VALUE name. UserError for one that is not so."""
    for name, new in named(fields).items():
        at = config
        for part in name.split("."):  # a new one would be added, and change nothing
            if not (hasattr(at, "keys") and part in at):
                raise UserError(
                    f"--set={name} is not a field of the config: configs/base.py has the list"
                )
            at = at[part]
        try:
            config.update_from_flattened_dict({name: new})
        except (TypeError, ValueError) as error:
            raise UserError(f"--set={name}={new!r}: {error}") from None


def in_one_line(command, arguments) -> int:
    """What a command returns. A UserError ends the program with one line and the exit code 1."""
    try:
        return command(arguments)
    except UserError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
