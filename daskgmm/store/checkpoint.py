"""Checkpoints: where a fit stands after each pass, in one file from which the same fit goes on."""

import json
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from time import monotonic
from typing import Any, TypeAlias

import dask
from dask.utils import parse_timedelta

from daskgmm.errors import CheckpointError, warn
from daskgmm.store import files
from daskgmm.store.lock import locked
from daskgmm.store.places import Place, locate

VERSION = 2

# Settings that say when a fit ends. One goes on as long as, or longer than, that of the file asked for.
FURTHER: dict[str, Callable[[Any, Any], bool]] = {"max_iter": operator.le, "tol": operator.ge}

INTERVAL = "60 s"  # unless Dask's configuration has another at `daskgmm.checkpoint-interval`

Check: TypeAlias = Callable[[Mapping[str, Any], Any], None]
"""Raises for an identity and a state that do not belong together."""


def _unchecked(identity: Mapping[str, Any], state: Any) -> None:
    """Take any."""


class Record:
    """The last state of a fit, for whoever goes on from it.

    It knows ``done``, ``mid_pass``, ``n_passes``, and the same state ``under`` other settings of `FURTHER`.
    """

    state: Any = None

    def take(self, state: Any) -> None:
        """``state`` is the one to go on from."""
        self.state = state


class Checkpoint(Record):
    """Writes states to a file as well: each that ends a stage or a pass, and those in mid-pass from time to time.

    A file that cannot be written is a warning: the fit matters more, and the last whole file stays. ``check`` is
    called before each write, and raises a `CheckpointError` where another fit has taken over.
    """

    def __init__(
        self, place: Place, identity: Mapping[str, Any], check: Callable[[], None] = lambda: None
    ) -> None:
        self.place, self.check, self.written, self.tried = place, check, None, monotonic()
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))  # lists, as they come back
        self.interval = float(parse_timedelta(dask.config.get("daskgmm.checkpoint-interval", INTERVAL)))

    def take(self, state: Any) -> None:
        self.state = state
        if not state.mid_pass or monotonic() - self.tried >= self.interval:
            self.flush()

    def flush(self) -> None:
        """Write the last state, unless that is done."""
        if self.state is None or self.state is self.written:
            return
        header = {"format": files.CHECKPOINT, "version": VERSION, "identity": self.identity}
        try:
            self.check()
            files.save(self.place, header, self.state)
        except CheckpointError:
            self.written = self.state  # as far as this fit goes: it must not try again as it ends
            raise
        except OSError as error:
            warn(
                f"The checkpoint {os.fspath(self.place)} cannot be written: {error}. The fit goes on; "
                "an older checkpoint stays as it was.",
                RuntimeWarning,
            )
        else:
            self.written = self.state
        self.tried = monotonic()


@contextmanager
def opened(
    place: Place | None,
    kind: type[Any],
    settings: Callable[[], Mapping[str, Any]],
    layout: Callable[[], Mapping[str, Any]],
    digests: Callable[[], list[str]],
    tell: Callable[[str], None],
    belongs: Check = _unchecked,
) -> Iterator[Record]:
    """Where to keep states: with the one to go on from, if ``place`` has one.

    ``place`` None keeps them in memory alone. ``kind`` is the class of the states. ``settings`` and ``layout``
    give those of this fit and of its rows, by name, as JSON. ``digests`` gives hashes of some of the rows. It is
    called only where the fit is not finished: a finished one is returned without a look at the rows. Nor are rows
    of another layout looked at, which need not be there. ``tell`` gets a sentence where the fit goes on from a
    file, or waits for one. ``belongs`` raises for a file whose state is not of the fit that it names.

    Raises
    ------
    CheckpointError
        If the file is of another fit (it lists the differences), damaged, or in use. On a URL also later, if
        another fit has taken over since: one that found no sign of life of this one for the time of a lease.
    FileNotFoundError
        If the folder does not exist.
    """
    if place is None:
        yield Record()
        return
    locate(place, refusal=CheckpointError)
    with ExitStack() as stack:
        check = stack.enter_context(locked(place, tell))
        found, plan = read(place, kind, belongs), layout()
        checkpoint = Checkpoint(place, {**settings(), **plan}, check)
        here = checkpoint.identity
        if found is None:
            here["digests"] = digests()
        else:
            there, before = found
            state = _under(before, there, here)
            if not ((before.done and state.done) or any(_differs(there, here, name) for name in plan)):
                here["digests"] = digests()
            _compare(place, there, here)
            here.setdefault("digests", there.get("digests"))
            checkpoint.state, checkpoint.written = state, before
            finished = before.done and state.done
            what, more = ("is finished", " The rows were not read.") if finished else ("goes on", "")
            tell(f"The fit {what}, from {os.fspath(place)}; passes over the rows so far: {state.n_passes}.{more}")
        # An interrupt may have struck in the middle of a write.
        stack.callback(checkpoint.flush)
        yield checkpoint


def read(place: Place, kind: type[Any], check: Check = _unchecked) -> tuple[dict[str, Any], Any] | None:
    """Identity and state in a file; None where there is none. ``check`` raises for those that differ."""
    try:
        header, arrays = files.read(place, partial(_judge, place))
        state, identity = files.value_of(header, arrays, kind), header["identity"]
        check(identity, state)
        return identity, state
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise CheckpointError(f"The checkpoint {os.fspath(place)} is a folder. Name a file.") from None
    except (CheckpointError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file may raise
        raise CheckpointError(
            f"{os.fspath(place)} is not a checkpoint of a daskgmm fit, or it is damaged. Name another file, or "
            "delete it."
        ) from error


def _judge(place: Place, header: files.Header) -> bool:
    """Refuse what is no checkpoint, or one of another version."""
    if header["format"] == files.MODEL:
        raise CheckpointError(
            f"{os.fspath(place)} is a model, not a checkpoint: name another file. A warm start takes models."
        )
    version = header["version"]
    if header["format"] != files.CHECKPOINT or type(version) is not int:
        raise files.Damaged("It is no checkpoint.")
    if version != VERSION:
        older = "Finish that fit with what began it, name another file, or delete it."
        remedy = "Update it." if version > VERSION else older
        raise CheckpointError(
            f"{os.fspath(place)} has checkpoint version {version}, this daskgmm reads version {VERSION}. {remedy}"
        )
    return True


def _compare(place: Place, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another fit; values that ``here`` lacks are not compared."""
    lines = []
    for name in (name for name in here if _differs(there, here, name)):
        both = (text if len(text := repr(side.get(name))) <= 60 else f"{text[:57]}..." for side in (there, here))
        told = "  {}: {} there, {} now".format(name, *both)
        lines.append("  the rows: their values differ" if name == "digests" else told)
    if lines:
        listed = "\n".join(lines)
        raise CheckpointError(
            f"The checkpoint {os.fspath(place)} is of another fit:\n{listed}\n"
            "To go on, give the rows and settings that it was begun with; only max_iter may be larger, and tol "
            "smaller. To begin another fit, name another file, or delete this one."
        )


def _under(state: Any, there: Mapping[str, Any], here: Mapping[str, Any]) -> Any:
    """The state as it stands with the settings of this fit, where those of `FURTHER` are others."""
    others = {name: here[name] for name in FURTHER if name in here and there.get(name) != here[name]}
    return state.under(**others) if others else state


def _differs(there: Mapping[str, Any], here: Mapping[str, Any], name: str) -> bool:
    """Whether a fit cannot go on with this value of ours."""
    agree: Callable[[Any, Any], bool] = FURTHER.get(name, operator.eq)
    try:
        if name not in there:  # what a fit may be told since then
            return here[name] is not None
        return not agree(there[name], here[name])
    except TypeError:  # in a damaged file
        return True
