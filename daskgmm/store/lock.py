"""One writer for a checkpoint or an output: a second one on the same place is refused."""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep, time
from typing import Any, Self
from uuid import uuid4

import dask
from dask.utils import parse_timedelta
from fsspec.implementations.local import LocalFileSystem

from daskgmm.errors import CheckpointInUseError, DataError, InUseError
from daskgmm.store.aside import beside, clear, flocked
from daskgmm.store.places import Options, Place, locate

DYING = 0.5  # seconds in which a killed process is gone
LEASE = "30 s"  # unless Dask's configuration has another at `daskgmm.checkpoint-lease`
LONGEST = 3600.0  # seconds that any owner is given: what an object says of itself is not trusted further
OBJECT_BYTES = 4096  # of a lease that are read


@contextmanager
def locked(
    place: Place,
    tell: Callable[[str], None],
    options: Options = None,
    what: str = "checkpoint",
    refusal: type[InUseError] = CheckpointInUseError,
) -> Iterator[Callable[[], None]]:
    """Be the only writer of ``place``; what is to be called before each write. ``tell`` gets what it waits for.

    A local file has a lock beside it, ``PLACE.daskgmm-lock``, which the kernel frees when a process dies. On a URL
    it is a `Lease`. ``what`` is the word for the place in messages, ``options`` are those of a URL's file system.

    Raises
    ------
    InUseError
        A ``refusal``, if another writes it; from the call, if another has taken over since.
    FileNotFoundError
        If the folder does not exist.
    """
    fs, path = locate(place, options)
    if not isinstance(fs, LocalFileSystem):
        with Lease(fs, path, os.fspath(place), tell, what, refusal) as lease:
            yield lease.check
        return
    path = os.path.realpath(path)
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"There is no folder {Path(path).parent} for the {what}.")
    lock = beside(path, "lock")
    try:
        handle = None if sys.platform == "win32" else _take(lock)
    except BlockingIOError:
        raise refusal(f"Another process is writing the {what} {path}.") from None
    try:
        clear(path)
        yield lambda: None
    finally:
        if handle is not None:
            Path(lock).unlink(missing_ok=True)
            os.close(handle)


def _take(lock: str) -> int | None:
    """Handle of the lock; None where nothing can be written, as then nobody writes.

    Whoever begins anew as soon as another was killed waits a moment until the kernel has done away with that one.
    """
    until = monotonic() + DYING
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError:
            if not os.path.lexists(lock):  # the first write will tell
                return None
            if not os.access(lock, os.R_OK) or os.path.islink(lock) or not os.path.isfile(lock):
                raise
            handle = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)  # another user's
        held = flocked(handle)
        if held is None:  # a file system without locks
            return handle
        if not held:
            os.close(handle)
            if monotonic() > until:
                raise BlockingIOError
            sleep(DYING / 20)
            continue
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        os.close(handle)  # whoever held it has just removed it: take the new one


class Lease:
    """The object PATH.daskgmm-lock, which says who writes PATH, and is put anew while they live.

    An object store knows neither locks nor whether a process is alive. So the object is put on the condition
    that there is none, and then anew three times within the time of the lease, which it names. Whoever finds one
    watches it for that time, an hour at most, or for their own if that is longer: if it changes, its owner lives;
    if not, its owner is dead, and it is taken over. A process that was only stopped, and wakes up later, finds
    another's name in it, or none, and writes no more; what it was about to write as it was stopped may still come.

    Where the store knows no conditions, two fits that begin at the same moment may both go on, until the first
    write of one. Every state that either of them writes is whole, and of the same fit.
    """

    def __init__(
        self,
        fs: Any,
        path: str,
        place: str,
        tell: Callable[[str], None] = lambda line: None,
        what: str = "checkpoint",
        refusal: type[InUseError] = CheckpointInUseError,
    ) -> None:
        self.fs, self.path, self.tell = fs, f"{path}.daskgmm-lock", tell
        self.place, self.refusal = f"the {what} {place}", refusal
        self.duration = min(LONGEST, float(parse_timedelta(dask.config.get("daskgmm.checkpoint-lease", LEASE))))
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "lease": uuid4().hex}
        self.mark = str(self.owner["lease"]).encode()
        self.puts, self.put_at = 0, time()
        self.ended = Event()
        self.thread = Thread(target=self._stay, name="daskgmm-lease", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._take()
        except BaseException:
            self._leave()
            raise
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join(self.duration)
        self._leave()

    def _leave(self) -> None:
        with suppress(Exception):  # what stays runs out
            if self._own(self._read()):
                self.fs.rm_file(self.path)

    def check(self) -> None:
        """Refuse to write where another fit has taken over."""
        try:
            found = self._read()
        except Exception:  # the write will tell
            return
        if found is not None and not self._own(found):
            raise self._refused(found)
        if found is None and self._overdue:  # another may have taken over, and be done
            raise self.refusal(
                f"{self.path} is gone, and was not put anew for {self.duration:g} s: another process may have "
                f"written {self.place}. Run again to go on from there."
            )

    @property
    def _overdue(self) -> bool:
        """Whether another may have taken over. By the clock on the wall: others stand still with the machine."""
        return time() - self.put_at > self.duration

    def _take(self) -> None:
        watched, began, wait = None, monotonic(), self.duration
        while not self._create():
            found = self._read()
            if self._own(found):  # a try that was taken to have failed
                return
            if found is not None and watched is None:
                owner, silent = _owner(found)
                watched, began, wait = found, monotonic(), max(wait, silent)
                self.tell(f"{owner} may be writing {self.place}: watching it for {wait:g} s.")
            if found is not None and found != watched:
                raise self._refused(found)
            if monotonic() - began > wait:
                if found is None:
                    raise DataError(f"{self.path} can be neither made nor read.")
                self._put()
                self.ended.wait(self.duration / 10)  # others may have waited for the same one
                if (last := self._read()) is not None and not self._own(last):
                    raise self._refused(last)
                return
            self.ended.wait(self.duration / 10)

    def _create(self) -> bool:
        """Put the object if there is none; whether there was none, or none can be put."""
        if self._seen():  # a store may ignore the condition
            return False
        try:
            self._put(mode="create")
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no place for {self.place}: {error}") from error
        except Exception:  # a store that takes no conditions, or cannot be written
            if self._seen():
                return False
            with suppress(Exception):  # the first write will tell
                self._put()
        return True

    def _seen(self) -> bool:
        """Whether the object is there, as far as the store tells; not from a listing, which may be old."""
        with suppress(Exception):
            return self._read() is not None
        return False

    def _stay(self) -> None:
        """Show that this process lives, until it ends or another has taken over."""
        while not self.ended.wait(self.duration / 3):
            with suppress(Exception):  # a store that is away for a moment
                found = self._read()
                if self._overdue if found is None else not self._own(found):
                    return
                self._put()

    def _put(self, **condition: str) -> None:
        self.puts += 1
        content = json.dumps({**self.owner, "puts": self.puts, "seconds": self.duration})
        self.fs.pipe_file(self.path, content.encode(), **condition)
        self.put_at = time()

    def _read(self) -> bytes | None:
        try:
            found: bytes = self.fs.cat_file(self.path, start=0, end=OBJECT_BYTES)
        except FileNotFoundError:
            return None
        return found

    def _own(self, found: bytes | None) -> bool:
        return found is not None and self.mark in found

    def _refused(self, found: bytes) -> InUseError:
        return self.refusal(f"{_owner(found)[0]} is writing {self.place}.")


def _owner(found: bytes) -> tuple[str, float]:
    """Who has put an object, and for how many seconds they may be silent."""
    try:
        owner = json.loads(found)
        silent = float(owner.get("seconds", 0))
        who = f"Another writer (process {int(owner['pid'])} on {str(owner['host'])[:80]})"
        return who, min(silent, LONGEST) if silent > 0 else 0.0
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return "Another writer", 0.0
