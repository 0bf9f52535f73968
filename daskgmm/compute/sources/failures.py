"""What may fail where rows are read: a store that gets over it, memory, and the words for the rest."""

import errno
import math
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from dask.utils import format_bytes
from distributed.system import MEMORY_LIMIT
from zarr.abc.store import Store

from daskgmm._typing import Array
from daskgmm.compute.memory import Spare
from daskgmm.compute.sources.base import library
from daskgmm.errors import DataError

T = TypeVar("T")

RETRIES = (0.1, 0.5, 2.0)  # seconds before each new try to read a store
# What a file system or a network may get over. Others, such as no memory or no such file, say something else.
PASSING = [
    getattr(errno, name, 0)  # no system has all of them
    for name in (
        *("EIO", "EREMOTEIO", "EAGAIN", "EBUSY", "EINTR", "EMFILE", "ENFILE", "EPIPE", "ESTALE", "ENOBUFS"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "ECONNABORTED", "ECONNRESET", "ECONNREFUSED", "ENOTCONN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ETIMEDOUT"),
    )
]
NETWORKS = ("fsspec", "aiohttp", "botocore", "obstore", "urllib3", "requests")  # whose errors are no OSErrors


def attempt(failure: str, function: Callable[..., T], *arguments: Any) -> T:
    """What a function reads, again where its store fails; `DataError` that begins so where it cannot."""
    try:
        return retried(function, *arguments)
    except (DataError, FileNotFoundError):
        raise
    except Exception as error:  # whatever a library or a store may raise
        raise DataError(f"{failure}: {told(error)}") from error


def retried(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that reads a store, again where the store fails."""
    for pause in RETRIES:
        try:
            return function(*arguments)
        except Exception as error:
            if not passes(error):
                raise
        time.sleep(pause)
    return function(*arguments)


def passes(error: Exception) -> bool:
    """Whether a store failed to hand over bytes, as it may not the next time; bytes may also be bad themselves."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in PASSING
    # Codecs raise OSErrors too, and like those of many stores they have no number.
    frames = traceback.walk_tb(error.__traceback__)
    from_store = any(isinstance(frame.f_locals.get("self"), Store) for frame, _ in frames)
    return from_store and (isinstance(error, OSError) or library(error, NETWORKS) is not None)


def told(error: Exception) -> str:
    """An error of a store or a codec, in brief."""
    text = f"{type(error).__name__}: {error}"
    return text if len(text) < 400 else text[:400] + " ..."


def check_memory(what: str, asks: str, n_bytes: float) -> None:
    """Raise `DataError` for more than this machine has: ``what`` cannot be done, and what ``asks`` for so much."""
    if n_bytes > MEMORY_LIMIT:
        raise _too_large(what, asks, n_bytes)


def memory_for(
    spare: Spare, shape: tuple[int, ...], dtype: np.dtype[Any], what: str, asks: str, n_bytes: float = 0
) -> Array:
    """An array for rows; `DataError` as of `check_memory` where there is no memory for it, or for ``n_bytes``."""
    n_bytes = max(n_bytes, math.prod(shape) * dtype.itemsize)
    check_memory(what, asks, n_bytes)
    try:
        return spare.array(shape, dtype)
    except (MemoryError, OSError, OverflowError) as error:
        raise _too_large(what, asks, n_bytes) from error


def _too_large(what: str, asks: str, n_bytes: float) -> DataError:
    return DataError(
        f"{what} in {format_bytes(MEMORY_LIMIT)} of memory{asks} {format_bytes(int(n_bytes))} at a time. "
        "Write it in smaller chunks, or use a smaller block_size."
    )
