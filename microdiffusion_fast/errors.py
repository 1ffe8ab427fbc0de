"""The one exception that the user can mend, worded the same everywhere."""

from __future__ import annotations


class InputError(ValueError):
    """Input the user can mend: names the argument, what was expected and what came.

    The command line turns it into one line on stderr and exit code 2.
    """

    def __init__(self, argument: str, expected: str, got: object) -> None:
        self.argument, self.expected, self.got = argument, expected, got
        super().__init__(f"{argument}: expected {expected}, got {got}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, object]]:
        # an exception is rebuilt from `args`, which is one text here: it crosses processes
        return type(self), (self.argument, self.expected, self.got)
