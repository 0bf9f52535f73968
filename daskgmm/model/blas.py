"""One BLAS and OpenMP thread on the driver: their results differ in the last bits between thread counts."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from threading import Lock

from threadpoolctl import ThreadpoolController

_lock = Lock()
_users = 0
_limit = ExitStack()


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries: once is enough


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit the process to one thread while anyone is inside; the last to leave restores what was before.

    The limit is global: fits in several threads would otherwise restore each other's.
    """
    global _users
    with _lock:
        if _users == 0:
            _limit.enter_context(_controller().limit(limits=1))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limit.close()
