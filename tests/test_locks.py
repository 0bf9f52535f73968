"""Every lock of this process's threads: where it is dropped, what it guards goes wrong.

A thread is held within what the lock guards until another has come in, or its time is over: a lock lets none in.
"""

import ast
import copy
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Event, Lock
from typing import Any

import dask
import numpy as np
import pytest
from sklearn.base import clone

from daskgmm import MiniBatchGaussianMixture
from daskgmm.compute.block import Block, Shelf
from daskgmm.compute.rows import as_rows
from daskgmm.compute.sources import hdf5
from daskgmm.compute.threads import Threads
from daskgmm.fit.stepwise import Stepwise
from daskgmm.fit.survey import Threshold
from daskgmm.model import blas
from tests.compute.arrays import write

PACKAGE = Path(blas.__file__).parents[1]
TIME = 0.3  # seconds that a thread waits for one that a lock keeps out

# Each is the subject of a test here.
GUARDED = {
    "model/blas.py": "RLock",
    "compute/block.py": "Lock",
    "compute/sources/hdf5.py": "Lock",
    "compute/threads.py": "Lock, Semaphore",  # the first is Dask's, which a fork needs anew
    "estimators/alone.py": "RLock",
    "fit/survey.py": "Lock",
}


def test_every_lock_has_a_test() -> None:
    found = {}
    for file in PACKAGE.rglob("*.py"):
        names = {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(ast.parse(file.read_text()))}
        if kinds := names & {"Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Barrier"}:
            found[file.relative_to(PACKAGE).as_posix()] = ", ".join(sorted(kinds))
    assert found == GUARDED


class Gate:
    """Holds the first thread that comes until a second one has, or `TIME` is over."""

    def __init__(self) -> None:
        self.came, self.lock, self.second = 0, Lock(), Event()
        self.first = Event()

    def __call__(self) -> None:
        with self.lock:
            self.came += 1
            number = self.came
        self.first.set()
        if number == 1:
            self.second.wait(TIME)
        else:
            self.second.set()


def both(first: Callable[[], Any], second: Callable[[], Any], gate: Gate) -> None:
    """One in a thread, and another in a second as soon as the first is in the gate."""
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        assert gate.first.wait(30)
        pool.submit(second).result(30)
        one.result(30)


class Pool:
    """Stands for a library: notes when its limit is set and when it is lifted, with a gate in one of them."""

    def __init__(self, gate: Gate, waits: str) -> None:
        self.told: list[str] = []
        self.num_threads = 2
        self.gate, self.waits = gate, waits

    def set_num_threads(self, threads: int) -> None:
        what = "set" if threads == 1 else "lifted"
        if what == self.waits:
            self.gate()
        self.told.append(what)
        self.num_threads = threads


@pytest.mark.timeout(60)
@pytest.mark.parametrize("waits", ["set", "lifted"])
def test_the_limit_of_threads_is_set_once_and_lifted_by_the_last(
    waits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes while it is being set shares it; whoever comes while it is being lifted sets it anew."""
    gate = Gate()
    pool, ready = Pool(gate, waits), Barrier(2)
    monkeypatch.setattr(blas, "_pools", lambda: ([pool], []))

    def enter() -> None:
        with blas.one_thread():
            if waits == "set":
                ready.wait(30)  # both are inside
            assert pool.told.count("set") > pool.told.count("lifted")

    both(enter, enter, gate)
    assert pool.told == ["set", "lifted"] * (1 if waits == "set" else 2)
    assert not blas._inside


@pytest.mark.timeout(60)
@pytest.mark.parametrize("second", ["partial_fit", "extend", "fit"])
def test_no_batch_is_lost_and_no_reader_waits(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(2000, 2))
    model, advance = MiniBatchGaussianMixture(2, random_state=0).fit(x[:1000]), Stepwise.advance
    means, came, go_on = model.means_, Event(), Event()

    def held(*arguments: Any) -> Any:
        """The first stays between its look at the model and the swap of it."""
        if not came.is_set():
            came.set()
            assert go_on.wait(30)
        return advance(*arguments)

    monkeypatch.setattr(Stepwise, "advance", held)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(model.partial_fit, x[1000:1500])
        assert came.wait(30)
        two = pool.submit(getattr(model, second), x[1500:] if second == "partial_fit" else x)
        with pytest.raises(TimeoutError):
            two.result(TIME)
        for reader in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert np.array_equal(reader.means_, means)
            reader.predict(x)
        copy.deepcopy(model).partial_fit(x)
        clone(model).fit(x)
        go_on.set()
        one.result(30)
        two.result(30)
    assert model.n_samples_seen_ == model.next_row_ == 2000


@pytest.mark.timeout(60)
def test_a_fit_and_batches_in_many_threads() -> None:
    x = np.random.default_rng(0).normal(size=(22_000, 2))
    model = MiniBatchGaussianMixture(2, random_state=0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(model.partial_fit, np.split(x, 220)))
        assert model.n_samples_seen_ == 22_000
        calls = [pool.submit(method, x[:100]) for method in (model.partial_fit, model.fit, model.partial_fit)]
        assert [call.result(30) for call in calls] == [model] * 3
    assert model.n_samples_seen_ in (100, 200, 300)


@pytest.mark.timeout(60)
def test_a_shelf_never_holds_more_than_there_is_room_for() -> None:
    gate = Gate()

    class Slow(Shelf):
        """Waits between the look at the room and what is taken of it."""

        @property
        def room(self) -> float:
            room = self.left
            gate()
            return room

        @room.setter
        def room(self, room: float) -> None:
            self.left = room

    blocks = [Block(np.zeros((10, 2)), index) for index in range(2)]
    shelf = Slow(room=blocks[0].x.nbytes)
    both(lambda: shelf.put(blocks[0]), lambda: shelf.put(blocks[1]), gate)
    assert list(shelf.blocks) == [0]
    assert shelf.left == 0


def test_a_threshold_is_never_below_the_key_of_a_row_in_the_sample() -> None:
    gate = Gate()

    class Slow(Threshold):
        """Waits once the keys are sorted, before the bound is taken from them."""

        @property
        def keys(self) -> Any:
            return self.held

        @keys.setter
        def keys(self, keys: Any) -> None:
            self.held = keys
            if len(keys) == 9:
                gate()

    threshold = Slow(8)
    # One key more is not sorted in: a bound that were read off the end of the keys then would be that one.
    both(lambda: threshold.lower(np.arange(1.0, 13.0)), lambda: threshold.lower(np.array([0.5])), gate)
    assert threshold.bound == 9.0


def test_no_key_is_lost() -> None:
    """The bound that two threads find together is that of all their keys."""
    gate = Gate()

    class Slow(Threshold):
        @property
        def keys(self) -> Any:
            held = self.held
            if not len(held):
                gate()
            return held

        @keys.setter
        def keys(self, keys: Any) -> None:
            self.held = keys

    threshold = Slow(3)
    both(lambda: threshold.lower(np.array([1.0, 2.0])), lambda: threshold.lower(np.array([3.0, 4.0])), gate)
    assert threshold.bound == 4.0


def test_no_more_threads_compute_than_there_are_while_others_read(tmp_path: Path) -> None:
    x = np.arange(32.0).reshape(16, 2)
    rows = as_rows(write(tmp_path / "x.zarr", x, (2, 2)), block_size=32)
    assert rows.n_blocks == 8
    together = Barrier(2)

    def count(block: Block) -> int:
        try:
            together.wait(TIME)
        except BrokenBarrierError:
            return len(block.x)
        raise AssertionError("two computed at once")

    with dask.config.set(num_workers=1):
        engine = Threads(span=1)
        assert engine.ahead(rows) > 0
        assert engine.reduce(rows, count) == 16


@pytest.mark.timeout(60)
@pytest.mark.parametrize("other", ["ours", "HDF5_LOCK", "NETCDFC_LOCK"])
def test_one_thread_at_a_time_is_in_the_library_of_hdf5(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another of ours waits by our own lock, whether or not xarray is there; one that reads in xarray, by its."""
    if other == "ours":
        monkeypatch.delitem(sys.modules, "xarray.backends.locks", raising=False)
        theirs = hdf5.alone
    else:
        locks = pytest.importorskip("xarray.backends.locks")
        theirs = partial(getattr, locks, other)
    inside, seen = 0, []
    gate = Gate()

    def read(alone: Callable[[], Any]) -> None:
        nonlocal inside
        with alone():
            inside += 1
            gate()
            seen.append(inside)
            inside -= 1

    both(partial(read, theirs), partial(read, hdf5.alone), gate)
    assert seen == [1, 1]
