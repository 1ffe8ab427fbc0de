"""`--config FILE` and `--save-config FILE`: the settings of a run in a TOML file.

A file has a table for each command, such as [reconstruct] or [sweep.gamma], with the names of the
options as keys (`step_length = 6`). What it says is put before what stands on the command line, so
the line beats the file. Inputs and outputs are no settings and stay on the line.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer  # noqa: TID253  # the package never imports this module

from microdiffusion_fast.errors import InputError

# On what a command is run. How it is run (`--quiet`, `--overwrite`) are flags without a `--no-`.
_ON_THE_LINE = {"output", "volume", "projections", "truth", "uncertainty"}
_ON_THE_LINE |= {"shard", "sbatch", "parts"}
_PANEL = "Settings"
_MAX_BYTES = 1 << 20
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml",
        help="Take settings from this file; the line beats it.",
        rich_help_panel=_PANEL,
    ),
]
SaveConfig = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml",
        help="Write all settings of this run, for --config.",
        rich_help_panel=_PANEL,
    ),
]

Command = Callable[..., None]
_known: dict[tuple[str, ...], Command] = {}
_line: ContextVar[str | None] = ContextVar("line", default=None)


def configurable(*words: str) -> Callable[[Command], Command]:
    """Give a command `--config` and `--save-config`.

    Args:
        words: its name on the command line, which is also that of its table.
    """

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        hints |= {"config": Config, "save_config": SaveConfig}

        @wraps(command)
        def run(*, save_config: Path | None = None, **options: Any) -> None:
            options.pop("config", None)  # `expand` has read it
            if save_config is not None:
                _check_place(save_config, overwrite=bool(options.get("overwrite")))
            command(**options)
            # of the processes of one training, one writes
            if save_config is not None and not int(os.environ.get("RANK", "0")):
                _write(save_config, words, command, options)

        own = inspect.signature(command)
        kind = inspect.Parameter.KEYWORD_ONLY
        added = [
            inspect.Parameter(name, kind, default=None, annotation=hints[name])
            for name in ("config", "save_config")
        ]
        declared = [
            parameter.replace(annotation=hints[name], kind=kind)
            for name, parameter in own.parameters.items()
        ]
        run.__annotations__ = hints
        run.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*declared, *added], return_annotation=None
        )
        _known[words] = command
        return run

    return decorate


def expand(arguments: Sequence[str]) -> list[str]:
    """The command line with the settings of its `--config` file as options in front of its own.

    Raises:
        InputError: naming the file and the key.
    """
    words = list(arguments)
    _line.set(shlex.join(["microdiffusion-fast", *words]))
    name = next((name for name in _known if tuple(words[: len(name)]) == name), None)
    file = _option(words, "--config")
    if name is None or file is None:
        return words
    table = read(Path(file), name)
    hints = settings(_known[name])
    said: list[str] = []
    for key, value in table.items():
        said += _as_words(key, value, hints[key], f"{file}: {key}")
    return [*name, *said, *words[len(name) :]]


def line() -> str | None:
    """The command line as it was typed; None where there was none."""
    return _line.get()


def settings(command: Command) -> dict[str, Any]:
    """The settings of a command, by name, with their types."""
    found = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        kind, *about = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        flag = _bare(kind)[0] is bool and not any("/--no-" in repr(vars(info)) for info in about)
        if name not in _ON_THE_LINE and name != "return" and not flag:
            found[name] = kind
    return found


def read(path: Path, name: tuple[str, ...]) -> dict[str, Any]:
    """The table of a command in a file.

    Raises:
        InputError: naming the file, and the key that is not known.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError("--config", f"a file of at most {_MAX_BYTES:,} bytes", str(path))
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("--config", "a readable file", f"{path} ({error.strerror})") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError("--config", "a TOML file", f"{path} ({error})") from None
    _check_tables(found, (), str(path))
    table: Any = found
    for word in name:
        table = table.get(word)
        if table is None:
            expected = f"a table [{'.'.join(name)}]"
            raise InputError(str(path), expected, ", ".join(_tables(found)) or "an empty file")
    return dict(table)


def _check_tables(found: Mapping[str, Any], way: tuple[str, ...], file: str) -> None:
    """Refuse what no command knows, anywhere in the file."""
    if way in _known:
        known = settings(_known[way])
        for key in found:
            if key not in known:
                close = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                expected = f"a setting of {' '.join(way)}{hint}"
                raise InputError(f"{file}: {key}", expected, "an unknown key")
        return
    for key, value in found.items():
        inner = (*way, key)
        if not any(name[: len(inner)] == inner for name in _known):
            names = ", ".join(f"[{'.'.join(name)}]" for name in _known)
            raise InputError(f"{file}: {key}", f"one of the tables {names}", "an unknown key")
        if not isinstance(value, dict):
            raise InputError(f"{file}: {key}", f"a table [{'.'.join(inner)}]", repr(value))
        _check_tables(value, inner, file)


def _tables(found: Mapping[str, Any]) -> list[str]:
    names = []
    for name in _known:
        table: Any = found
        for word in name:
            table = table.get(word, {})
        if table:
            names.append(f"[{'.'.join(name)}]")
    return names


def _as_words(key: str, value: Any, kind: Any, argument: str) -> list[str]:
    """A setting as it would stand on the command line."""
    expected = _expected(kind, value)
    if expected is not None:
        raise InputError(argument, expected, repr(value))
    flag = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{key.replace('_', '-')}"]
    if _bare(kind)[0] is tuple:
        return [flag, *(str(item) for item in value)]
    if isinstance(value, list):
        return [f"{flag}={','.join(str(item) for item in value)}"]
    return [f"{flag}={value}"]


def _expected(kind: Any, value: Any) -> str | None:
    """What a value should have been, or None where it is that."""
    base, choices = _bare(kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if base is bool:
        return None if isinstance(value, bool) else "true or false"
    if base is int:
        return None if number and isinstance(value, int) else "a whole number"
    if base is float:
        return None if number else "a number"
    if base is Path:
        return None if isinstance(value, str) else "a path in quotes"
    if base is Literal:
        words = ", ".join(repr(choice) for choice in choices)
        return None if value in choices else f"one of {words}"
    if base is tuple:
        good = isinstance(value, list) and len(value) == len(choices)
        good = good and all(_expected(float, item) is None for item in value)
        return None if good else f"a list of {len(choices)} numbers"
    items = value if isinstance(value, list) and value else [value]
    good = all(isinstance(i, str | int | float) and not isinstance(i, bool) for i in items)
    return None if good else "text, a number, or a list of them"


def _bare(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its None: what it is, and what it is made of."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    return get_origin(kind) or kind, get_args(kind)


def _option(words: Sequence[str], flag: str) -> str | None:
    for index, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and index + 1 < len(words):
            return words[index + 1]
    return None


def _check_place(path: Path, *, overwrite: bool) -> None:
    from microdiffusion_fast.cli_support import check_writable, naming
    from microdiffusion_fast.io_output import prepare_output

    with naming(path="--save-config"):
        target = prepare_output(path, overwrite=overwrite, store=False)
    check_writable(target.parent, "--save-config")


def _write(path: Path, name: tuple[str, ...], command: Command, options: dict[str, Any]) -> None:
    from microdiffusion_fast.cli_support import naming
    from microdiffusion_fast.io_output import staged
    from microdiffusion_fast.provenance import versions

    version = versions()["microdiffusion_fast"]
    lines = [f"# microdiffusion-fast {version}; written by", f"# {line()}", f"[{'.'.join(name)}]"]
    for key in settings(command):
        value = options.get(key)
        if value is not None:
            lines.append(f"{key} = {_toml(value)}")
    with naming(path="--save-config"), staged(path.resolve()) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    # A basic string of TOML is one of JSON, but for the character DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
