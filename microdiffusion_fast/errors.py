"""The one exception that the user can mend, worded the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 600  # characters of `got`: files can hold megabytes where a word is expected


class InputError(ValueError):
    """Input the user can mend: names the argument, what was expected and what came.

    The command line turns it into one line on stderr and exit code 2.
    """

    def __init__(self, argument: str, expected: str, got: object) -> None:
        self.argument, self.expected, self.got = argument, expected, got
        super().__init__(_line(f"{_cut(argument)}: expected {expected}, got {_cut(str(got))}"))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, object]]:
        # an exception is rebuilt from `args`, which is one text here: it crosses processes
        return type(self), (self.argument, self.expected, self.got)


@contextmanager
def naming(**names: str) -> Iterator[None]:
    """Give the arguments of an `InputError` the names that the caller has for them."""
    try:
        yield
    except InputError as error:
        if error.argument not in names:
            raise
        raise InputError(names[error.argument], error.expected, error.got) from error


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def _line(text: str) -> str:
    """One line that a terminal shows as it is: what a file says may hold anything."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
