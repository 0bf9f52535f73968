"""Codecs that stop where a chunk is cut off, or would grow beyond what its array has room for."""

import asyncio
import gzip
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import zarr
from numcodecs.abc import Codec as Numcodec
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import ShardingCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer

from daskgmm._typing import Array

HEADER = 18  # bytes, of the longest of these formats


def zstd(data: Array, most: int) -> None:
    """Refuse a frame whose header (RFC 8878, 3.1.1.1) says that it holds more; it need not say anything."""
    header = bytes(data[:HEADER])
    if header[:4] != b"\x28\xb5\x2f\xfd" or len(header) < HEADER:
        return
    flags, single = header[4], header[4] >> 5 & 1
    first = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    size = (single, 2, 4, 8)[flags >> 6]
    _refuse_more(int.from_bytes(header[first : first + size], "little"), most)


def blosc(data: Array, most: int) -> None:
    """Refuse a header that says that more is decoded, or that more is there than is: Blosc would read on."""
    header = bytes(data[:HEADER])
    _refuse_more(int.from_bytes(header[4:8], "little"), most)
    if len(data) < max(16, told := int.from_bytes(header[12:16], "little")):
        raise ValueError(f"the chunk is cut off: {len(data)} bytes of {told} are there")


def gunzip(data: Array, most: int) -> bytes:
    """What gzip makes of it."""
    found = gzip.GzipFile(fileobj=io.BytesIO(bytes(data))).read(most + 1)
    _refuse_more(len(found), most)
    return found


def _refuse_more(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"the chunk decodes to {size} bytes or more, and its array has room for {most}")


PLAIN = ("bytes", "vlen-bytes", "endian")
# Those that have a checksum in their format, or are one; others may be told to have one.
CHECKED = {*("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"), *("gzip", "zlib", "bz2", "lzma")}
GUARDS: dict[str, Callable[[Array, int], bytes | None]] = {"zstd": zstd, "blosc": blosc, "gzip": gunzip}
"""By the name of a codec: what looks at bytes before they are decoded, or decodes them."""


@dataclass(frozen=True)
class Guarded(BytesBytesCodec):
    """A codec of format 3 that looks first."""

    codec: Any
    guard: Callable[[Array, int], bytes | None]
    most: int
    is_fixed_size = False

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        data, most = chunk_bytes.as_numpy_array(), self.most
        found = await asyncio.to_thread(gunzip, data, most) if self.guard is gunzip else self.guard(data, most)
        if found is None:
            decoded: Buffer = await self.codec._decode_single(chunk_bytes, chunk_spec)
            return decoded
        return chunk_spec.prototype.buffer.from_bytes(found)

    def to_dict(self) -> Any:
        return self.codec.to_dict()

    def compute_encoded_size(self, size: int, spec: ArraySpec) -> int:
        return int(self.codec.compute_encoded_size(size, spec))


class GuardedNumcodec(Numcodec):  # type: ignore[misc]
    """A codec of format 2 that looks first."""

    codec_id = "guarded"

    def __init__(self, codec: Any, guard: Callable[[Array, int], bytes | None], most: int) -> None:
        self.codec, self.guard, self.most = codec, guard, most

    def decode(self, buf: Any, out: Any = None) -> Any:
        found = self.guard(buf, self.most)
        return self.codec.decode(buf, out) if found is None else found

    def encode(self, buf: Any) -> Any:
        return self.codec.encode(buf)

    def get_config(self) -> Any:
        return self.codec.get_config()


def told(array: zarr.Array[Any]) -> tuple[tuple[str, ...], bool]:
    """Names of the codecs of an array, and whether one of them tells that bytes are not those written."""
    metadata = cast(Any, array.metadata)
    if metadata.zarr_format == 3:
        found = [codec.to_dict() for codec in _inside(metadata.codecs)]
        pairs = [
            (str(codec["name"]).removeprefix("numcodecs."), codec.get("configuration", {})) for codec in found
        ]
    else:
        found = [
            codec.get_config() for codec in (*(metadata.filters or ()), metadata.compressor) if codec is not None
        ]
        pairs = [(str(codec["id"]), codec) for codec in found]
    checksums = any(name in CHECKED or how.get("checksum") is True for name, how in pairs)
    return tuple(name for name, _ in pairs if name not in PLAIN), checksums


def _inside(codecs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Codecs of format 3 that a chunk goes through; those of shards are inside them."""
    sharding = next((codec for codec in codecs if isinstance(codec, ShardingCodec)), None)
    return codecs if sharding is None else _inside(sharding.codecs)


def guarded(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The same array, whose codecs look first where there is something to look at."""
    metadata, shapes = cast(Any, array.metadata), (array.shards or array.chunks, array.chunks)
    # What the last codec may give: those before it may have added some.
    outside, most = (2 * math.prod(shape) * array.dtype.itemsize + 2**16 for shape in shapes)
    if metadata.zarr_format == 3:
        metadata = replace(metadata, codecs=_guarded(metadata.codecs, outside, most))
    elif metadata.compressor is not None and (guard := GUARDS.get(metadata.compressor.codec_id)):
        codec = GuardedNumcodec(metadata.compressor, guard, most)
        metadata = replace(metadata, compressor=codec)
    # How to write, which Zarr 3.1.4 does not tell.
    return zarr.Array(zarr.AsyncArray(metadata, array.store_path, getattr(array, "config", None)))


def _guarded(codecs: tuple[Any, ...], most: int, inside: int) -> tuple[Any, ...]:
    """The codecs of format 3, and those inside shards."""
    found = []
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            codec = replace(codec, codecs=_guarded(codec.codecs, inside, inside))
        elif isinstance(codec, BytesBytesCodec):
            name = str(codec.to_dict()["name"]).removeprefix("numcodecs.")
            codec = Guarded(codec, GUARDS[name], most) if name in GUARDS else codec
        found.append(codec)
    return tuple(found)
