"""The command line: `microdiffusion-fast demo | simulate | reconstruct | evaluate | verify |
sweep | train | info`.

Exit codes: 0 success; 2 input the user can mend, with one line on stderr; 130 interrupted, 143
terminated; 1 a fault of this program. `--debug`, anywhere on the line, shows the traceback of each.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import typer  # noqa: TID253  # the package never imports this module

from microdiffusion_fast.cli_commands import app, reconstruct, simulate
from microdiffusion_fast.cli_config import expand
from microdiffusion_fast.cli_demo import demo
from microdiffusion_fast.cli_options import NAMES
from microdiffusion_fast.cli_stream import verify
from microdiffusion_fast.cli_sweep import sweep
from microdiffusion_fast.cli_tools import evaluate, info, train
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.progress import Cancelled

# In the order of the help text.
for command in (demo, simulate, reconstruct, evaluate, verify, train, info):
    app.command()(command)
app.add_typer(sweep)


def main() -> None:
    """Entry point of the console scripts."""
    # A batch system's time limit ends the program like Ctrl-C: temporary outputs are removed.
    signal.signal(signal.SIGTERM, _end)
    sys.exit(run(sys.argv[1:]))


def _end(number: int, _: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the removal
    print("terminated", file=sys.stderr, flush=True)
    sys.exit(128 + number)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; faults become one line on stderr."""
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"] or ["--help"]
    usage_error = typer.BadParameter.__mro__[2]  # every complaint of the parser derives from it
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            arguments = expand(arguments)
            code = app(arguments, prog_name="microdiffusion-fast", standalone_mode=False)
            # The parser turns Ctrl-C into a return value of 130.
            return _fail("interrupted", 130) if code == 130 else int(code or 0)
        except (KeyboardInterrupt, typer.Abort, Cancelled):
            return _fail("interrupted", 130, debug=debug)
        except typer.Exit as stop:
            return int(stop.exit_code)
        except BrokenPipeError:
            # Whoever read our output has gone; a flush at exit must not complain again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            if isinstance(error, usage_error):
                words = error.format_message()  # type: ignore[attr-defined]
                return _fail(f"error: {_usage(words, arguments)}", 2, debug=debug)
            if _is_users(error):
                return _fail(f"error: {_words(error)}", 2, debug=debug)
            kind = type(error).__name__
            hint = "" if debug else " (a fault of this program: --debug shows where)"
            return _fail(f"error: {kind}: {error}{hint}", 1, debug=debug)


def _is_users(error: Exception) -> bool:
    """Whether the user can mend it: bad input, a file, or an argument that a kernel refused."""
    if isinstance(error, InputError | OSError):
        return True
    worded = re.match(r"\w+: expected .+, got ", str(error), re.DOTALL)
    return isinstance(error, ValueError | TypeError) and worded is not None


def _usage(words: str, arguments: Sequence[str]) -> str:
    """The parser's complaint in the form of all others; as it came where it has another form."""
    found = re.fullmatch(r"Invalid value for '([^']+)'[^:]*: (?:Value error, )?(.+)", words)
    if found is None:
        return words
    name, reason = found.groups()
    if limits := re.fullmatch(r"Input should be ([^,]+).*", reason):
        return f"{name}: expected {limits[1]}, got {_given(name, arguments)}"
    if choice := re.fullmatch(r"(.+) is not one of (.+?)\.?", reason):
        return f"{name}: expected one of {choice[2]}, got {choice[1]}"
    return f"{name}: {reason}"


def _given(name: str, arguments: Sequence[str]) -> str:
    """What stands behind an option on the line."""
    for index, word in enumerate(arguments):
        if word.startswith(f"{name}="):
            return repr(word.partition("=")[2])
        if word == name:
            behind = list(arguments[index + 1 :])
            end = next((i for i, word in enumerate(behind) if i and word.startswith("--")), None)
            return repr(" ".join(behind[: end if name == "--voxel-size" else 1]))
    return "something else"


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error)
    name = text.partition(":")[0]
    # Python's names of the options, as the command line spells them.
    return f"--{name.replace('_', '-')}{text[len(name) :]}" if name in NAMES else text


def _fail(message: str, code: int, *, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
