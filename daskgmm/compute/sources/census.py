"""Which chunks of a Zarr array are in its store: all of them, or some of many, before any is read."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple, TypeVar

import zarr
from zarr.abc.store import Store
from zarr.core.sync import sync

from daskgmm.compute.sources.base import grid
from daskgmm.compute.sources.chunks import TOGETHER, Chunk, per_shard, shard_index

T = TypeVar("T")

LISTED = 100_000  # objects, chunks or shards, of which an array's store is listed: of more, some are looked up
SAMPLED = 1_000  # of these, from all over the array; each costs a request
WEIGHED = 64  # of which it is asked how long they are


class Census(NamedTuple):
    """Chunks of an array, and what was found of them."""

    n_chunks: int
    n_looked_up: int = 0
    n_missing: int = 0  # of those
    stored_bytes: float | None = None  # of all, by the length of some


def of(array: zarr.Array[Any]) -> Census:
    """Look up which chunks the store has."""
    n_chunks = math.prod(grid(array.shape, array.chunks))
    with suppress(Exception):  # whatever a store may raise, which may forbid what no fit asks of it
        return sync(_looked_up(array, n_chunks))
    return Census(n_chunks)


async def _looked_up(array: zarr.Array[Any], n_chunks: int) -> Census:
    shape = grid(array.shape, array.shards or array.chunks)
    n = math.prod(shape)
    listed = await _listed(array) if array.shards is None and n <= LISTED else None
    count = min(n, SAMPLED) if listed is None else n
    random = Random(0)  # one of every so many: those in step might all lie in one column
    chosen = [_numbers(random.randrange(i * n // count, (i + 1) * n // count), shape) for i in range(count)]
    if listed is None:
        found = await _together(_held, array, chosen)
    else:
        encoded = (array.metadata.encode_chunk_key(numbers) for numbers in chosen)
        found = [(1, int((array.store_path / key).path in listed)) for key in encoded]
    chunks, stored = map(sum, zip(*found, strict=True))
    there = [numbers for numbers, (_, some) in zip(chosen, found, strict=True) if some]
    return Census(n_chunks, chunks, chunks - stored, await _stored_bytes(array, there, len(there) * n / count))


async def _listed(array: zarr.Array[Any]) -> set[str] | None:
    """Paths of all objects of the array; None where the store does not list them."""
    place, store = array.store_path.path, array.store
    if store.supports_listing:
        with suppress(Exception):  # to list may be forbidden where to read is not
            return {path async for path in store.list_prefix(f"{place}/" if place else "")}
    return None


async def _held(array: zarr.Array[Any], numbers: Chunk) -> tuple[int, int]:
    """How many chunks belong into an object, and how many are there."""
    key = array.metadata.encode_chunk_key(numbers)
    if array.shards is None:
        return 1, int(await (array.store_path / key).exists())
    each = per_shard(array)
    whole = grid(array.shape, array.chunks)
    sizes = [min(step, size - n * step) for n, step, size in zip(numbers, each, whole, strict=True)]
    try:
        index = await shard_index(array, key)
    except Exception:  # no index: nothing can be read of it
        index = None
    inside = tuple(slice(0, size) for size in sizes)
    return math.prod(sizes), 0 if index is None else int(index.get_full_chunk_map()[inside].sum())


async def _stored_bytes(array: zarr.Array[Any], there: Sequence[Chunk], n: float) -> float | None:
    """Bytes of so many objects, by the length of some; None where the store would have to read these."""
    if not there:
        return 0.0
    if type(array.store).getsize is Store.getsize:
        return None
    lengths = await _together(_length, array, there[:: -(-len(there) // WEIGHED)])
    return sum(lengths) / len(lengths) * n


async def _length(array: zarr.Array[Any], numbers: Chunk) -> int:
    """Bytes of an object."""
    return await array.store.getsize((array.store_path / array.metadata.encode_chunk_key(numbers)).path)


async def _together(
    function: Callable[..., Awaitable[T]], array: zarr.Array[Any], chosen: Sequence[Chunk]
) -> list[T]:
    """What a function finds of objects, some at a time."""
    found: list[T] = []
    for first in range(0, len(chosen), TOGETHER):
        some = chosen[first : first + TOGETHER]
        found += await asyncio.gather(*(function(array, numbers) for numbers in some))
    return found


def _numbers(place: int, shape: Sequence[int]) -> Chunk:
    """The numbers along each axis of the so-manieth piece."""
    numbers = []
    for size in reversed(shape):
        place, number = divmod(place, size)
        numbers.append(number)
    return tuple(reversed(numbers))
