"""One thread for BLAS and OpenMP while anyone is inside; whatever happens there, all is as before afterwards."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from types import FrameType
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from daskgmm import GaussianMixture
from daskgmm.model import blas
from daskgmm.model.blas import one_thread

pytestmark = pytest.mark.timeout(60)


def pools() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info()]


@pytest.fixture(autouse=True)
def three() -> Iterator[list[int]]:
    """More than one thread, on whatever machine; the test's own limits are gone before ours come."""
    with threadpool_limits(3):
        before = pools()
        assert set(before) == {3}
        yield before
        assert pools() == before
    assert not blas._inside
    assert not blas._before


class Guest(Thread):
    """A thread that goes in, waits, and comes out when told."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: dict[str, list[int]] = {}
        self.ready, self.go, self.came, self.out, self.gone, self.end = (Event() for _ in range(6))
        self.start()
        assert self.ready.wait(30)

    def run(self) -> None:
        self.found["before"] = pools()
        self.ready.set()
        assert self.go.wait(30)
        with one_thread():
            self.found["inside"] = pools()
            self.came.set()
            assert self.out.wait(30)
        self.found["after"] = pools()
        self.gone.set()
        assert self.end.wait(30)  # a thread that has gone would free what it had set

    def enter(self) -> None:
        self.go.set()
        assert self.came.wait(30)

    def leave(self) -> None:
        self.out.set()
        assert self.gone.wait(30)


def shared() -> list[int]:
    return [pool.num_threads for pool in blas._pools()[0]]


@pytest.mark.parametrize("order", ["first in, first out", "last in, first out"])
def test_two_that_overlap_leave_all_as_it_was(order: str) -> None:
    first, second = Guest(), Guest()
    first.enter()
    second.enter()
    for guest in (first, second) if order == "first in, first out" else (second, first):
        assert set(shared()) == {1}
        guest.leave()
    assert set(shared()) == {3}
    for guest in (first, second):
        guest.end.set()
        guest.join(30)
        assert set(guest.found["inside"]) == {1}  # OpenMP too, whose limit is the thread's own
        # The first that left saw the other's limit of what the process has.
    assert pools() == [3] * len(pools())
    last = second if order == "first in, first out" else first
    assert last.found["after"] == last.found["before"]


def test_two_fits_that_overlap_leave_all_as_it_was() -> None:
    x = np.random.default_rng(0).normal(size=(300, 2))

    def fit(seed: int) -> list[int]:
        GaussianMixture(2, random_state=seed).fit(x)
        return pools()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fit, range(24)))
        assert set(shared()) == {3}  # while all threads live


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside_leaves_all_as_it_was(error: type[BaseException]) -> None:
    def fail() -> None:
        with one_thread(), one_thread():
            assert set(pools()) == {1}
            raise error

    for _ in range(2):
        with pytest.raises(error):
            fail()


def enter_interrupted(number: int) -> None:
    """Go in, with an interrupt before the so-manieth line on the way, if there are so many."""
    seen: set[tuple[FrameType, int]] = set()

    def trace(frame: FrameType, what: str, _: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != blas.__file__:
            return None
        # Once each: a lock's way out, where Python lets no interrupt in, is told as its line again.
        if what == "line" and (frame, frame.f_lineno) not in seen:
            seen.add((frame, frame.f_lineno))
            if len(seen) == number:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        with one_thread():
            sys.settrace(None)
    finally:
        sys.settrace(None)


def test_an_interrupt_on_the_way_in_leaves_all_as_it_was() -> None:
    before = pools()
    for number in range(1, 100):
        try:
            enter_interrupted(number)
        except KeyboardInterrupt:
            assert pools() == before, f"line {number}"
        else:
            break
    assert 10 < number < 99


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("own", [False, True], ids=["another thread inside", "the forking thread inside"])
def test_a_child_has_the_limits_of_the_thread_that_forked(own: bool) -> None:
    other = Guest()
    other.enter()
    with one_thread() if own else threadpool_limits():
        child = os.fork()
        if child == 0:
            inside = set(shared()) == {1 if own else 3}
            with one_thread():
                inside &= set(pools()) == {1}
            os._exit(0 if inside and len(blas._inside) == own else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    other.leave()
    other.end.set()
