"""Chunks of a Zarr array: which lie under some rows, which of them the store lacks, which cannot be read."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import zarr
from zarr.codecs import ShardingCodec
from zarr.core.sync import sync

from daskgmm._typing import Array
from daskgmm.errors import DataError

Region: TypeAlias = tuple[slice, ...]
"""Where some values lie in an array, along each axis."""
Chunk: TypeAlias = tuple[int, ...]
"""Numbers of a chunk along each axis."""
Box: TypeAlias = tuple[range, ...]
"""Neighbouring chunks, by their numbers along each axis."""

TOGETHER = 64  # objects that are looked up at a time


def under(region: Region, each: Sequence[int]) -> Box:
    """The chunks, ``each`` of this shape, that lie under a region."""
    return tuple(range(part.start // step, -(-part.stop // step)) for part, step in zip(region, each, strict=True))


def halves(region: Region, each: Sequence[int]) -> Iterator[Region]:
    """A region over several chunks, ``each`` of this shape, cut between two along the first axis that has some."""
    box = under(region, each)
    axis = next(axis for axis, numbers in enumerate(box) if len(numbers) > 1)
    cut = box[axis][(len(box[axis]) + 1) // 2] * each[axis]
    for part in (slice(region[axis].start, cut), slice(cut, region[axis].stop)):
        yield (*region[:axis], part, *region[axis + 1 :])


def pieces(region: Region, each: Sequence[int], most: int) -> Iterator[Region]:
    """A region in parts over at most so many chunks, ``each`` of this shape, in order."""
    if math.prod(map(len, under(region, each))) <= most:
        yield region
    else:
        for half in halves(region, each):
            yield from pieces(half, each, most)


def alike(array: zarr.Array[Any], region: Region, values: Array) -> list[Chunk]:
    """The chunks whose part of a region, of which these are the values, is fill value throughout."""
    fill: Any = array.fill_value or 0  # format 2 need not name it
    # NaN is the only fill value that differs from itself.
    same = np.isnan if fill != fill else partial(np.equal, fill)
    box = under(region, array.chunks)
    places = (
        [
            slice(max(n * step, part.start) - part.start, min((n + 1) * step, part.stop) - part.start)
            for n in numbers
        ]
        for numbers, step, part in zip(box, array.chunks, region, strict=True)
    )
    # The first row shows of nearly all that they are not.
    return [
        chunk
        for chunk, place in zip(product(*box), product(*places), strict=True)
        if (part := values[place]).size and same(part[:1]).all() and same(part).all()
    ]


def title(array: zarr.Array[Any], chunk: Chunk) -> str:
    """What a chunk is called: by the key of its object, and by its numbers where that is a shard."""
    key = _key(array, chunk)
    return f"Chunk {key!r}" if array.shards is None else f"Chunk {chunk} in shard {key!r}"


def is_there(array: zarr.Array[Any]) -> bool:
    """Whether the store holds the array's metadata."""
    name = "zarr.json" if array.metadata.zarr_format == 3 else ".zarray"
    return sync((array.store_path / name).exists())


def first_missing(array: zarr.Array[Any], chunks: Sequence[Chunk]) -> Chunk | None:
    """The first of some chunks that is not in the store; an object, chunk or shard, is looked up once."""
    objects: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        objects.setdefault(_key(array, chunk), []).append(chunk)
    return sync(_first_missing(array, list(objects.items())))


async def _first_missing(array: zarr.Array[Any], objects: list[tuple[str, list[Chunk]]]) -> Chunk | None:
    look_up = _missing if array.shards is None else _missing_in_shard
    for first in range(0, len(objects), TOGETHER):
        some = objects[first : first + TOGETHER]
        found = await asyncio.gather(*(look_up(array, key, chunks) for key, chunks in some))
        lost = [chunk for chunk in found if chunk is not None]
        if lost:
            return lost[0]
    return None


async def _missing(array: zarr.Array[Any], key: str, chunks: list[Chunk]) -> Chunk | None:
    return None if await (array.store_path / key).exists() else chunks[0]


async def _missing_in_shard(array: zarr.Array[Any], key: str, chunks: list[Chunk]) -> Chunk | None:
    place = array.store_path / key
    try:
        index = await shard_index(array, key)
    except OSError:
        raise
    except Exception as error:  # whatever its codecs raise: Zarr reads an empty shard without it
        raise DataError(
            f"{title(array, chunks[0])} of {array.store_path} is not whole: the shard has no index: {error}"
        ) from error
    if index is None:
        return chunks[0]
    size = await place.store.getsize(place.path)
    for chunk in chunks:
        if (span := index.get_chunk_slice(chunk)) is None:
            return chunk
        # Zarr reads no bytes as no chunk.
        if not span[0] < span[1] <= size:
            raise DataError(
                f"{title(array, chunk)} of {array.store_path} is not whole: the shard's index says that it takes "
                f"bytes {span[0]} to {span[1]}, of {size}."
            )
    return None


async def shard_index(array: zarr.Array[Any], key: str) -> Any:
    """Which chunks a shard holds, and where; None where there is no shard."""
    metadata = array.metadata
    assert metadata.zarr_format == 3
    (codec,) = metadata.codecs
    assert isinstance(codec, ShardingCodec)
    return await codec._load_shard_index_maybe(array.store_path / key, per_shard(array))


def first_unreadable(array: zarr.Array[Any], region: Region) -> Chunk | None:
    """The first chunk under a region that cannot be read by itself, after the region could not be."""
    box = under(region, array.chunks)
    if all(len(numbers) == 1 for numbers in box):
        return tuple(numbers[0] for numbers in box)
    for part in halves(region, array.chunks):
        try:
            array.get_basic_selection(part)
        except Exception:  # whatever a codec raises
            pass
        else:
            continue
        return first_unreadable(array, part)
    return None


def per_shard(array: zarr.Array[Any]) -> tuple[int, ...]:
    """How many chunks a shard holds along each axis; 1 where there are no shards."""
    return tuple(shard // each for shard, each in zip(array.shards or array.chunks, array.chunks, strict=True))


def _key(array: zarr.Array[Any], chunk: Chunk) -> str:
    """Key of the object that holds a chunk."""
    return array.metadata.encode_chunk_key(tuple(c // n for c, n in zip(chunk, per_shard(array), strict=True)))
