"""The command line for more than one process: `--scheduler`, `--shard`, `--sbatch`.

They go from disk to disk, like `--memory`, which is what one process may take.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer  # noqa: TID253  # the package never imports this module

from microdiffusion_fast.errors import InputError

_PANEL = "More than one process"
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="Dask workers compute: local:N, slurm:N, or the address or file of a scheduler.",
        rich_help_panel=_PANEL,
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Do the i-th of n parts; the process that sees all done makes the volume.",
        rich_help_panel=_PANEL,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, help="Threads of one process; their number rounds.", rich_help_panel=_PANEL
    ),
]
Sbatch = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write a Slurm array script that does this in --parts jobs; compute nothing."
        " The file must be new: --overwrite is for the volume, and for the jobs.",
        rich_help_panel=_PANEL,
    ),
]
Parts = Annotated[
    int, typer.Option(min=1, help="Jobs of --sbatch, one part each.", rich_help_panel=_PANEL)
]
PARTS = 8

_SCRIPT = """\
#!/bin/bash
# Submit with: sbatch {file}
# Submitted again, it does what is missing. Partition, account, time and memory as your cluster
# wants them; with GPUs, one for each job: #SBATCH --gres=gpu:1
#SBATCH --job-name={name}
#SBATCH --array=1-{parts}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={threads}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x.%A_%a.log
#SBATCH --chdir={folder}

export OMP_NUM_THREADS={threads}
# srun takes no --cpus-per-task over from sbatch (Slurm 22.05 and later)
srun --ntasks=1 --cpus-per-task={threads} {command} \\
    --threads {threads} --shard "$SLURM_ARRAY_TASK_ID/{parts}"
code=$?
# Killed from outside (memory, a node): once more, three times at most. What is finished is kept.
if [ $code -gt 128 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt 3 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit $code
"""


@dataclass(frozen=True)
class Spread:
    """What `reconstruct` was asked for about processes; as its options."""

    scheduler: str | None
    shard: str | None
    threads: int | None
    sbatch: Path | None
    parts: int

    @property
    def asked(self) -> bool:
        """Whether more than this process is meant, or a part of the work."""
        return not (self.scheduler is None and self.shard is None and self.sbatch is None)

    def check(self, *, fresh: bool) -> None:
        """Refuse what excludes each other.

        Raises:
            InputError: naming the option.
        """
        given = {"--scheduler": self.scheduler, "--shard": self.shard, "--sbatch": self.sbatch}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise InputError(names[1], f"none with {names[0]}", given[names[1]])
        if fresh and (self.shard is not None or self.sbatch is not None):
            # each part would begin the others' work anew
            raise InputError("--fresh", f"none with {names[0]}", "it")

    @contextmanager
    def client(self, device: str | None, *, wanted: bool) -> Iterator[Any]:
        """The Dask client to compute with, None without a scheduler or where none is wanted."""
        if self.scheduler is None or not wanted:
            yield None
            return
        from microdiffusion_fast.distributed_cluster import connect

        cuda = (device or "").startswith("cuda")
        with connect(self.scheduler, threads=self.threads, cuda=cuda) as client:
            yield client

    def write_script(self, file: Path, arguments: Sequence[str], *, tiles: int) -> None:
        """Write the Slurm array script that does a command line in parts.

        Args:
            file: the script.
            arguments: of the program, as they were given.
            tiles: of the run; more parts would have nothing to do.

        Raises:
            InputError: the file is there, or cannot be written.
        """
        parts = min(self.parts, tiles)
        if file.exists():  # `--overwrite` is about the volume: the jobs get it too
            raise InputError("--sbatch", "a new file", f"{file}, which exists")
        words = [sys.executable, "-m", "microdiffusion_fast"]
        words += without(arguments, "--sbatch", "--parts", "--threads", "--save-config")
        text = _SCRIPT.format(
            file=shlex.quote(str(file)),
            name="microdiffusion-fast",
            parts=parts,
            threads=self.threads or 4,
            folder=shlex.quote(str(Path.cwd())),
            command=shlex.join(words),
        )
        try:
            file.write_text(text, encoding="utf-8")
            file.chmod(0o755)
        except OSError as error:
            got = f"{file} ({error.strerror})"
            raise InputError("--sbatch", "a file that can be written", got) from error


def without(arguments: Sequence[str], *options: str) -> list[str]:
    """A command line less some options that take one value, given as two words or with "="."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in options:
            next(words, None)
        elif word.partition("=")[0] not in options:
            kept.append(word)
    return kept
