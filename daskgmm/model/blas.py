"""One BLAS and OpenMP thread on the driver: their results differ in the last bits between thread counts."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from threading import RLock, get_ident
from typing import Any
from weakref import WeakSet

from threadpoolctl import ThreadpoolController


@dataclass(eq=False, weakref_slot=True, slots=True)
class _Guest:
    """Somebody inside `one_thread`; whom an interrupt throws out on the way is forgotten with their frame."""

    thread: int = field(default_factory=get_ident)


_lock = RLock()
_inside: WeakSet[_Guest] = WeakSet()
_before: dict[Any, int] = {}  # what the pools of the process had before the first came


@cache
def _pools() -> tuple[list[Any], list[Any]]:
    """Libraries with one pool for the process, and those that have a limit for each thread: OpenMP."""
    found = ThreadpoolController().lib_controllers  # looks through all loaded libraries: once is enough
    each = [pool for pool in found if "openmp" in (pool.user_api, getattr(pool, "threading_layer", None))]
    return [pool for pool in found if pool not in each], each


def _set(limits: Mapping[Any, int]) -> None:
    """Where threadpoolctl lets one thread alone set a limit, so that two do not fight: they have our lock."""
    for pool, threads in limits.items():
        free = getattr(pool, "clear_controlling_thread", lambda force: None)
        free(force=True)
        pool.set_num_threads(threads)
        free(force=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit the process to one thread while anyone is inside; the last to leave restores what was before.

    Fits in several threads would otherwise restore each other's limit. That of OpenMP is the thread's own.
    """
    shared, each = _pools()
    guest, own = _Guest(), {pool: pool.num_threads for pool in each}
    try:
        with _lock:
            _inside.add(guest)
            if len(_inside) == 1:
                for pool in shared:
                    _before.setdefault(pool, pool.num_threads)  # what an interrupt left there is the true one
                _set(dict.fromkeys(shared, 1))
        _set(dict.fromkeys(each, 1))
        yield
    finally:
        _set(own)
        with _lock:
            _inside.discard(guest)
            if not _inside:
                _set(_before)
                _before.clear()


def _in_child() -> None:
    """Of all threads, only the one that forked lives on."""
    for guest in list(_inside):
        if guest.thread != get_ident():
            _inside.discard(guest)
    if not _inside:
        _set(_before)
        _before.clear()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_in_child)
