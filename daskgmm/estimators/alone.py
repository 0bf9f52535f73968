"""One thread at a time learns: two that moved the same model would each forget what the other learnt."""

import os
from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from daskgmm.compute.cluster import seceded

F = TypeVar("F", bound=Callable[..., Any])

# Not in the estimators: no copy and no file is to have another's.
_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_locks.clear)  # whoever held them may not be there


def one_at_a_time(method: F) -> F:
    """Have calls of such methods of one estimator wait for each other; queries never do. A decorator."""

    @wraps(method)
    def alone(self: Any, *arguments: Any, **how: Any) -> Any:
        lock = _locks.setdefault(self, RLock())
        if not lock.acquire(blocking=False):
            with seceded():  # in a task of a cluster, whoever learns may need this thread
                lock.acquire()
        try:
            return method(self, *arguments, **how)
        finally:
            lock.release()

    return cast(F, alone)
