"""Checkpoints: where a fit stands after each pass, in one file from which the same fit goes on."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, TypeVar

import dask
import numpy as np
from dask.utils import parse_timedelta

from daskgmm._typing import Array
from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import Block, Rows
from daskgmm.errors import CheckpointError
from daskgmm.fit import archive
from daskgmm.fit.lock import locked
from daskgmm.fit.run import Run
from daskgmm.fit.survey import Survey

FORMAT, VERSION = "daskgmm checkpoint", 1

INTERVAL = "60 s"  # unless Dask's configuration has another at `daskgmm.checkpoint-interval`


class Standing(ABC):
    """Where a fit stands, as a frozen value. Nothing in it grows with the number of rows."""

    @property
    @abstractmethod
    def n_passes(self) -> int:
        """How often the rows were read."""

    @property
    @abstractmethod
    def runs(self) -> tuple[Run, ...]:
        """What the passes advance; empty until seeded."""

    @property
    def done(self) -> bool:
        """Whether no pass is left."""
        return bool(self.runs) and all(run.done for run in self.runs)


S = TypeVar("S", bound=Standing)


@dataclass(frozen=True, eq=False)
class State(Standing):
    """Where a batch fit stands.

    Attributes
    ----------
    random : dict
        State of the random numbers when the fit began.
    n_passes : int
        How often the rows were read.
    survey : Survey or None
        What the first pass found, until the runs have begun.
    runs : tuple of Run
        Empty until seeded.
    """

    random: dict[str, Any]
    n_passes: int = 0
    survey: Survey | None = None
    runs: tuple[Run, ...] = ()


archive.TYPES[State.__name__] = State


class Keeper(Generic[S]):
    """Holds the last state of a fit, for whoever interrupts it."""

    state: S | None = None

    def keep(self, state: S) -> S:
        """Take ``state`` as the one to go on from."""
        self.state = state
        return state

    def note(self, state: S) -> S:
        """The same for one of many states on the way, which need not all last."""
        self.state = state
        return state


class Checkpoint(Keeper[S]):
    """Writes states to a file as well: each that is kept, and noted ones from time to time.

    A file that cannot be written is a warning: the fit matters more, and the last whole file stays. ``check`` is
    called before each write, and raises a `CheckpointError` where another fit has taken over.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        identity: Mapping[str, Any],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.place, self.check = place, check
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))  # lists, as they come back
        self.written: S | None = None
        self.interval = float(parse_timedelta(dask.config.get("daskgmm.checkpoint-interval", INTERVAL)))
        self.tried = monotonic()

    def keep(self, state: S) -> S:
        super().keep(state)
        self.flush()
        return state

    def note(self, state: S) -> S:
        super().note(state)
        if monotonic() - self.tried >= self.interval:
            self.flush()
        return state

    def flush(self) -> None:
        """Write the last state, unless that is done."""
        if self.state is None or self.state is self.written:
            return
        arrays: dict[str, Array] = {}
        header = {"format": FORMAT, "version": VERSION, "identity": self.identity}
        header["state"] = archive.pack(self.state, arrays)
        try:
            self.check()
            archive.write(self.place, header, arrays)
        except CheckpointError:
            self.written = self.state  # as far as this fit goes: it must not try again as it ends
            raise
        except OSError as error:
            warnings.warn(
                f"The checkpoint {os.fspath(self.place)} cannot be written: {error}. The fit goes on; "
                "an older checkpoint stays as it was.",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            self.written = self.state
        self.tried = monotonic()


@contextmanager
def keeping(
    place: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
    layout: Mapping[str, Any],
    digests: Callable[[], list[str]],
    tell: Callable[[str], None],
) -> Iterator[Keeper[Any]]:
    """Where to keep states: with the one to go on from, if ``place`` has one.

    Parameters
    ----------
    place : path or fsspec URL, or None
        None keeps them in memory alone.
    settings, layout : mapping
        Of this fit and of its rows, by name, as JSON.
    digests : callable
        Hashes of some of the rows. Called only where the fit is not finished: a finished one is returned
        without a look at the rows. Nor are rows of another layout looked at, which need not be there.
    tell : callable
        Gets a sentence where the fit goes on from a file, or waits for one.

    Raises
    ------
    CheckpointError
        If the file is of another fit (it lists the differences), damaged, or in use. On a URL also later, if
        another fit has taken over since: one that found no sign of life of this one for the time of a lease.
    FileNotFoundError
        If the folder does not exist.
    """
    if place is None:
        yield Keeper()
        return
    with ExitStack() as stack:
        check = stack.enter_context(locked(place, tell))
        found = read(place)
        checkpoint: Checkpoint[Standing] = Checkpoint(place, {**settings, **layout}, check)
        here = checkpoint.identity
        if found is None or not (found[1].done or any(_differs(found[0], here, name) for name in layout)):
            here["digests"] = digests()
        if found is not None:
            there, checkpoint.state = found
            _compare(place, there, here)
            checkpoint.written = state = checkpoint.state
            what = "is finished" if state.done else "goes on"
            tell(f"The fit {what}, from {os.fspath(place)}; passes over the rows so far: {state.n_passes}.")
        # An interrupt may have struck in the middle of a write.
        stack.callback(checkpoint.flush)
        yield checkpoint


def layout(rows: Rows) -> dict[str, Any]:
    """Shape, types and block plan of some rows, and what belongs to them, as JSON."""
    sources = {"X": rows.x, "sample_weight": rows.weight, "start": rows.start}
    plan: list[list[int | None]] = []
    for size in rows.chunks:
        known = None if size != size else int(size)
        if plan and plan[-1][0] == known:
            plan[-1][1] += 1  # type: ignore[operator]
        else:
            plan.append([known, 1])
    told: dict[str, Any] = {
        f"{name}'s {what}": None if source is None else value(source)
        for name, source in sources.items()
        for what, value in (("columns", lambda s: list(s.shape[1:])), ("dtype", lambda s: s.dtype.str))
    }
    return {**told, "rows": rows.n_rows, "blocks [rows, how many]": plan, "omit_nan": rows.omit_nan}


def digests(engine: Engine, rows: Rows) -> list[str]:
    """SHA-256 of the first, the middle and the last block, with their weights and starts."""
    chosen = sorted({0, rows.n_blocks // 2, rows.n_blocks - 1}) if rows.n_blocks else []
    return engine.each(rows, digest, chosen)


def digest(block: Block) -> str:
    """SHA-256 of a block's values."""
    found = hashlib.sha256()
    for values in (block.x, block.weight, block.start):
        if values is not None:
            found.update(array_digest(values).encode())
    return found.hexdigest()


def array_digest(values: Any) -> str:
    """SHA-256 of an array's shape, type and values."""
    values = np.ascontiguousarray(values)
    found = hashlib.sha256(f"{values.shape} {values.dtype.str}".encode())
    found.update(values.data.cast("B") if values.size else b"")
    return found.hexdigest()


def value_digest(value: Any) -> str:
    """SHA-256 of a value that an archive can hold."""
    arrays: dict[str, Array] = {}
    found = hashlib.sha256(json.dumps(archive.pack(value, arrays)).encode())
    for array in arrays.values():
        found.update(array_digest(array).encode())
    return found.hexdigest()


def read(place: str | os.PathLike[str]) -> tuple[dict[str, Any], Standing] | None:
    """Identity and state in a file; None where there is none."""
    try:
        content = archive.fetch(place)
    except FileNotFoundError:
        return None
    except (IsADirectoryError, PermissionError) as error:  # the second is what Windows says of a folder
        if isinstance(error, PermissionError) and not os.path.isdir(place):
            raise
        raise CheckpointError(f"The checkpoint {os.fspath(place)} is a folder. Name a file.") from None
    try:
        header, arrays = archive.parse(content)
        if header["format"] != FORMAT:
            raise KeyError(header["format"])
        if header["version"] > VERSION:
            raise CheckpointError(
                f"{os.fspath(place)} has checkpoint version {header['version']}, this daskgmm reads up to "
                f"{VERSION}. Update it."
            )
        state = archive.unpack(header["state"], arrays)
        if not isinstance(state, Standing):
            raise TypeError(type(state))
        return header["identity"], state
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged archive may raise
        raise CheckpointError(
            f"{os.fspath(place)} is not a checkpoint of a daskgmm fit, or it is damaged. Name another file, or "
            "delete it."
        ) from error


def _compare(place: str | os.PathLike[str], there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another fit; values that ``here`` lacks are not compared."""
    names = [name for name in here if _differs(there, here, name)]
    if names:
        listed = "\n".join(
            "  the rows: their values differ"
            if name == "digests"
            else f"  {name}: {_short(there.get(name))} there, {_short(here[name])} now"
            for name in names
        )
        raise CheckpointError(
            f"The checkpoint {os.fspath(place)} is of another fit:\n{listed}\n"
            "Fit what it is of, name another file, or delete it."
        )


def _differs(there: Mapping[str, Any], here: Mapping[str, Any], name: str) -> bool:
    return name not in there or bool(there[name] != here[name])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
