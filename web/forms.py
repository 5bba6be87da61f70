"""What somebody sent with a form."""

from litestar.datastructures import FormMultiDict


def text(form: FormMultiDict, name: str) -> str:
    """A field as text; a file, which no form of ours sends, is none."""
    value = form.get(name)
    return value if isinstance(value, str) else ""


def is_name(typed: str, name: str) -> bool:
    """Whether somebody typed the name that a page asked for; a browser shows several spaces as one."""
    return typed.split() == name.split()
