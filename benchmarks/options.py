"""Values on a command line."""

import ast


def value(text: str):
    """A Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def named(fields) -> dict:
    """{name: value} of texts NAME=VALUE."""
    return {name: value(text) for name, _, text in (field.partition("=") for field in fields)}
