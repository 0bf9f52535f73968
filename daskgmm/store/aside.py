"""Local files and folders that are whole or absent: written beside their place, and put there in one step.

What is written has a name that nobody else uses, ``PLACE.daskgmm-<32 hexadecimal digits>.partial``, and its writer
holds the kernel's lock on it. So two writers never meet, and the last to end is what stays. What no lock is
held on was left by one who died: the next writer removes that, and nothing else.
"""

import ctypes
import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from daskgmm.errors import OutputError

if sys.platform != "win32":
    import fcntl

NAME_BYTES = 255  # of a file name, on all common file systems
TRIAL = 2**20  # bytes that are written before any work, to see whether any can be


@contextmanager
def aside(place: str, *, folder: bool = False, replace: bool = True) -> Iterator[str]:
    """A new, empty file or folder to write to, which takes the name ``place`` at the end, or is gone.

    What was at ``place`` is gone then, too; a symbolic link leads on to the new one. Without ``replace``, a
    `FileExistsError` says that there is something by now.
    """
    place = os.path.realpath(place)
    if not os.path.isdir(parent := os.path.dirname(place)):
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", parent)
    if not folder:
        _refuse_special(place)
    clear(place)
    new, handle = _claim(place, folder)
    try:
        yield new
        if not replace:
            _put_free(new, place)
        elif folder:
            _put_folder(new, place)
        else:
            os.replace(new, place)
    finally:
        _remove(new)  # what failed, or what was there before
        _close(handle)
    _sync_folder(parent)


def _refuse_special(place: str) -> None:
    """Raise `OSError` for what is no regular file: a device would be lost."""
    if os.path.lexists(place) and not os.path.isfile(place):
        raise OSError(errno.EINVAL, "It is no regular file", place)


def clear(place: str) -> None:
    """Remove what writers of ``place`` left as they died; a folder that one had just moved away comes back."""
    place = os.path.realpath(place)
    begin = beside(place, "")
    folder = Path(begin).parent
    with suppress(OSError):
        for left in [str(folder / name) for name in os.listdir(folder)]:
            if left.startswith(begin) and re.fullmatch(r"[0-9a-f]{32}\.(partial|old)", left.removeprefix(begin)):
                _clear(left, place)


def _clear(left: str, place: str) -> None:
    if sys.platform == "win32":  # no lock tells whether its writer lives
        return
    with suppress(OSError):  # a link, another's file
        if left.endswith(".old") and not os.path.lexists(place):
            os.rename(left, place)
            return
        # For files as NFS wants it, where a lock needs a handle that may write.
        handle = os.open(left, (os.O_RDONLY if os.path.isdir(left) else os.O_RDWR) | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if flocked(handle):
                _remove(left)
        finally:
            os.close(handle)


def beside(place: str, word: str) -> str:
    """A path beside ``place`` that only we use, no longer than a name may be."""
    folder, name = os.path.split(place)
    ours = f".daskgmm-{word}"
    if len(stem := os.fsencode(name)) > (most := NAME_BYTES - len(".daskgmm-.partial") - 32):
        digest = hashlib.sha256(stem).hexdigest()[:16]
        stem = stem[: most - 16] + digest.encode()
    return os.path.join(folder, os.fsdecode(stem) + ours)


def flocked(handle: int) -> bool | None:
    """Whether the lock on an open file is ours now; None on a file system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def check_writable(place: str) -> None:
    """Raise `OutputError` where no file of `TRIAL` bytes can be written at ``place``, before any work."""
    place = os.path.realpath(place)
    folder = os.path.dirname(place)
    if not os.path.isdir(folder):
        raise OutputError(f"{place} cannot be written: there is no folder {folder}.")
    try:
        with suppress(FileNotFoundError):
            os.lstat(place)  # a name that is too long
        new, handle = _claim(place, folder=False)
        try:
            with open(new, "wb", buffering=0) as file:
                file.write(bytes(TRIAL))
            if shutil.disk_usage(folder).free < TRIAL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            _remove(new)
            _close(handle)
    except OSError as error:
        raise OutputError(f"{place} cannot be written: {error.strerror}.") from error


def _claim(place: str, folder: bool) -> tuple[str, int | None]:
    """A new, empty file or folder beside ``place``, and the handle that holds its lock."""
    while True:
        new = beside(place, f"{uuid4().hex}.partial")
        if folder:
            os.mkdir(new)
        else:
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        if sys.platform == "win32":
            return new, None
        with suppress(FileNotFoundError):  # taken for one that was left, before it had its lock
            handle = os.open(new, (os.O_RDONLY if folder else os.O_RDWR) | os.O_CLOEXEC)
            if flocked(handle) is not False and os.path.exists(new):
                return new, handle
            os.close(handle)


def _close(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _remove(left: str) -> None:
    if os.path.isdir(left) and not os.path.islink(left):
        shutil.rmtree(left, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            os.unlink(left)


def _put_free(new: str, place: str) -> None:
    """Give a file its name, unless that is taken."""
    try:
        os.link(new, place)
    except FileExistsError:
        raise
    except OSError as error:  # a file system without links
        if os.path.lexists(place):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place) from error
        os.rename(new, place)


def _put_folder(new: str, place: str) -> None:
    """Give a folder its name; ``new`` names the one that was there, if there was one."""
    if not os.path.lexists(place):
        os.rename(new, place)
    elif not _swapped(new, place):
        # For a moment nothing is at `place`: who dies then has left what `clear` puts back.
        old = beside(place, f"{uuid4().hex}.old")
        os.rename(place, old)
        try:
            os.rename(new, place)
        except BaseException:
            os.rename(old, place)
            raise
        os.rename(old, new)


def _swapped(a: str, b: str) -> bool:
    """Swap two names in one step; False where the system has no such call (Linux and macOS have)."""
    if sys.platform == "win32":
        return False
    libc, here = ctypes.CDLL(None, use_errno=True), -100
    first, second = os.fsencode(a), os.fsencode(b)
    try:
        if sys.platform == "linux":
            failed = libc.renameat2(here, first, here, second, 2)
        else:
            failed = libc.renamex_np(first, second, 2)
    except AttributeError:
        return False
    if failed and (code := ctypes.get_errno()) not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), a, None, b)
    return not failed


def _sync_folder(folder: str) -> None:
    """Make the renaming itself last, where the system lets a folder be opened."""
    if os.name == "posix":
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
