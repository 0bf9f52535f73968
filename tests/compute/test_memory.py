"""Memory of blocks that are gone serves the next ones, and never while anybody still looks at it."""

import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from daskgmm._typing import Array
from daskgmm.compute.memory import IDLE_BYTES, Spare
from daskgmm.compute.rows import as_rows

F8 = np.dtype(np.float64)


def address(array: Array) -> int:
    return int(array.ctypes.data)


def test_memory_of_an_array_that_is_gone_serves_the_next() -> None:
    spare = Spare()
    first = spare.array((1000, 3), F8)
    place = address(first)
    del first
    second = spare.array((10, 3), np.dtype(np.float32))  # smaller ones, too
    assert address(second) == place
    assert (second.shape, second.dtype, second.flags.writeable) == ((10, 3), np.dtype(np.float32), True)
    del second
    assert spare.array((2000, 3), F8).shape == (2000, 3)  # larger ones not
    assert spare.array((0, 3), F8).shape == (0, 3)


def test_memory_is_not_shared_while_anything_refers_to_it() -> None:
    spare = Spare()
    array: Any = spare.array((1000, 3), F8)
    array[:] = 1.0
    views = [array[10:20], array.T, array.view(np.int64), np.asarray(memoryview(array)), array.reshape(-1)]
    place = address(array)
    del array
    for _ in range(len(views)):
        gc.collect()
        other = spare.array((1000, 3), F8)
        assert address(other) != place
        other[:] = 2.0
        del other
        assert all((view.view(F8) == 1.0).all() for view in views)
        del views[0]
    assert place in {address(array) for array in [spare.array((1000, 3), F8) for _ in range(2)]}


def test_threads_never_get_the_same_memory() -> None:
    spare = Spare()

    def work(number: int) -> bool:
        for _ in range(200):
            array = spare.array((10_000,), F8)
            array[:] = number  # without the GIL
            if not (array == number).all():
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(future.result(timeout=30) for future in [pool.submit(work, number) for number in range(8)])


@pytest.mark.parametrize(("n_bytes", "waiting"), [(IDLE_BYTES // 4, 4), (IDLE_BYTES, 2)])
def test_little_waits(n_bytes: int, waiting: int) -> None:
    spare = Spare()
    arrays = [spare.array((n_bytes,), np.dtype(np.uint8)) for _ in range(8)]
    del arrays
    assert len(spare.free) == waiting


def test_nothing_waits_without_its_owner() -> None:
    spare = Spare()
    array, other = spare.array((1000,), F8), spare.array((1000,), F8)
    values: Any = array.base
    memory = weakref.ref(values.base.obj)
    del values
    del spare, array
    gc.collect()
    assert memory() is None
    assert other.shape == (1000,)


def test_memory_stays_in_its_process() -> None:
    spare = Spare()
    spare.array((1000, 3), F8)
    copy = pickle.loads(pickle.dumps(spare))
    assert len(spare.free) == 1
    assert len(copy.free) == 0


def test_blocks_of_a_store_are_read_into_memory_of_their_own(tmp_path: Path) -> None:
    values = np.arange(60.0).reshape(20, 3)
    zarr.create_array(tmp_path / "x.zarr", data=values, chunks=(5, 3))
    rows = as_rows(tmp_path / "x.zarr", block_size=120)
    held = [rows.read(index).x for index in range(4)]
    assert np.array_equal(np.concatenate(held), values)
    spare: Any = vars(rows.x)["spare"]
    assert len(spare.free) == 0
    place = address(held[0])
    del held[0]
    assert len(spare.free) == 1
    again = rows.read(3).x
    assert address(again) == place
    assert np.array_equal(again, values[15:])
    assert np.array_equal(np.concatenate(held), values[5:])
