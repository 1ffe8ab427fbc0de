"""What a streamed run writes: the volume and, where it was asked for, its uncertainty beside it.

Each is an `OutputStore` of the same layout, begun, taken up and finished together. A tile is done
when both have its receipts; it writes those of the volume last. The uncertainty gets its name
first, when both are complete, so that a volume that is there has its uncertainty, and a kill
between the two leaves a run that has nothing to do but put the volume in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError, naming
from .io_output import prepare_output, refuse_input
from .store_finished import is_finished, remove_remains
from .store_layout import Layout
from .store_output import Finished, OutputStore, Part

UNCERTAINTY = "uncertainty"  # the argument, and its name in the fingerprint of a run


def name_beside(output: Path, uncertainty: Path, *, source: Path) -> str:
    """What the fingerprint of a run calls its uncertainty: the path from the volume's folder.

    Raises:
        InputError: it is no Zarr store, or lies in the volume or in the stack, or around them.
    """
    if not uncertainty.name.lower().endswith(".zarr"):
        expected = "a name ending in .ome.zarr or .zarr, for a volume that goes from disk to disk"
        raise InputError(UNCERTAINTY, expected, str(uncertainty))
    refuse_input(output, source)
    with naming(output=UNCERTAINTY):
        refuse_input(uncertainty, source)
    target, volume = uncertainty.resolve(), output.resolve()
    if target in (volume, *volume.parents) or volume in target.parents:
        raise InputError(UNCERTAINTY, "another store than the output", str(uncertainty))
    return os.path.relpath(target, volume.parent)


def identity_beside(output: Path, uncertainty: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint of the uncertainty: that of the run, and whose it is."""
    return {**identity, "of": os.path.relpath(output.resolve(), uncertainty.resolve().parent)}


def is_in_place(
    output: Path,
    uncertainty: Path,
    identity: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
) -> bool:
    """Whether the uncertainty of a run has its name already; else it may be put there.

    Raises:
        InputError: something else is there and is not to be overwritten, or it cannot be written.
    """
    own = identity_beside(output, uncertainty, identity)
    with naming(output=UNCERTAINTY):
        if resume and is_finished(uncertainty, own, overwrite=overwrite):
            remove_remains(uncertainty)
            return True
        prepare_output(uncertainty, overwrite=overwrite, store=True, argument=UNCERTAINTY)
    return False


def are_finished(
    output: Path, uncertainty: Path | None, identity: dict[str, Any], *, overwrite: bool
) -> bool:
    """Whether all that a run writes is complete; see `is_finished`.

    Raises:
        InputError: the volume is, and the uncertainty is not what was written with it.
    """
    if not is_finished(output, identity, overwrite=overwrite):
        return False
    remove_remains(output)
    if uncertainty is not None:
        own = identity_beside(output, uncertainty, identity)
        if not is_finished(uncertainty, own, overwrite=True):
            expected = (
                f"what was written with {output}, as it was finished (--fresh --overwrite,"
                " resume=False with overwrite=True, makes both anew)"
            )
            raise InputError(UNCERTAINTY, expected, f"{uncertainty}, which is not")
        remove_remains(uncertainty)
    return True


class Outputs:
    """The stores of one run, begun or taken up again; a context. See `OutputStore`.

    Args:
        output: of the volume.
        uncertainty: likewise; None where it was not asked for.
        layout: of both.
        identity: of the run.
        settings: see `OutputStore`.
        part: likewise.
        resume: likewise.
        overwrite: likewise.

    Attributes:
        volume: its store.
        deviation: that of the uncertainty; None where it was not asked for, or has its name.

    Raises:
        InputError: see `OutputStore`; the uncertainty goes by its own name.
        Finished: the run was finished by another process, meanwhile.
    """

    def __init__(
        self,
        output: Path,
        uncertainty: Path | None,
        layout: Layout,
        identity: dict[str, Any],
        *,
        settings: dict[str, Any],
        part: Part | None,
        resume: bool,
        overwrite: bool,
    ) -> None:
        wanted = uncertainty is not None and not is_in_place(
            output, uncertainty, identity, resume=resume, overwrite=overwrite
        )
        self.deviation: OutputStore | None = None

        def begin(path: Path, run: dict[str, Any]) -> OutputStore:
            return OutputStore(
                path,
                layout,
                run,
                settings=settings,
                part=part,
                resume=resume,
                overwrite=overwrite,
            )

        with ExitStack() as opened:
            self.volume = opened.enter_context(begin(output, identity))
            if wanted:
                assert uncertainty is not None
                own = identity_beside(output, uncertainty, identity)
                try:
                    with naming(output=UNCERTAINTY):
                        self.deviation = opened.enter_context(begin(uncertainty, own))
                except Finished:  # by a process that is about to finish the volume
                    pass
            self._opened = opened.pop_all()

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def stores(self) -> tuple[OutputStore, ...]:
        """Those that are written, the volume first."""
        return (self.volume,) if self.deviation is None else (self.volume, self.deviation)

    @contextmanager
    def last(self) -> Iterator[bool]:
        """Whether this process is to finish the run, see `OutputStore.last`."""
        beside = self.deviation
        if beside is not None and not beside.shards.has_all(beside.levels[0].boxes()):
            yield False  # whoever writes what is missing will look again
            return
        with self.volume.last() as last:
            yield last

    def finish(self, volume: dict[str, Any], deviation: dict[str, Any]) -> None:
        """Put both in their places, each with its metadata; see `OutputStore.finish`."""
        if self.deviation is not None:
            with naming(output=UNCERTAINTY):
                self.deviation.finish(deviation)
        self.volume.finish(volume)
