"""What a store is asked, and how often: for chunks that read as fill value, and after a failure."""

import bz2
import errno
import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import ShardingCodec
from zarr.storage import LocalStore, StorePath

from daskgmm.compute.rows import as_rows
from daskgmm.compute.sources import chunks
from daskgmm.errors import DataError
from tests.compute.arrays import VALUES, joined, write


class Broken(LocalStore):
    """A store that hands over its metadata, and fails at each chunk until it has done so a number of times."""

    error: Any = OSError("the network is not there")
    times = 10**6
    reads = 0

    async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
        if key.startswith("c/"):
            Broken.reads += 1
            if Broken.reads <= Broken.times:
                raise Broken.error
        return await super().get(key, *arguments, **options)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskgmm.compute.sources.failures.RETRIES", (0.0, 0.0, 0.0))
    Broken.reads = 0


def broken(place: Path, error: Exception, times: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Broken, "error", error)
    monkeypatch.setattr(Broken, "times", times)
    write(place, VALUES, (20, 3))
    return as_rows(zarr.open_array(Broken(place), mode="r"))


PASS = [
    OSError("the network is not there"),
    OSError(errno.EIO, "Input/output error"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    TimeoutError("no answer"),
    type("ServerDisconnectedError", (Exception,), {"__module__": "aiohttp.client_exceptions"})(),  # no OSError
]
LAST = [
    PermissionError(errno.EACCES, "Permission denied"),
    PermissionError("Access Denied"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OSError(errno.EINVAL, "Invalid argument"),
    MemoryError(),
    RuntimeError("no idea"),
    ValueError("no such number"),
]


@pytest.mark.parametrize("error", PASS, ids=repr)
def test_a_store_that_fails_is_asked_again(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = broken(tmp_path / "x.zarr", error, 3, monkeypatch)
    np.testing.assert_array_equal(joined(rows), VALUES)
    assert Broken.reads == 4
    rows = broken(tmp_path / "y.zarr", error, 10**6, monkeypatch)
    Broken.reads = 0
    with pytest.raises(DataError, match=r"y.zarr failed 4 times to be read \(block 0, rows 0 to 19\)") as caught:
        rows.read(0)
    assert caught.value.__cause__ is error
    assert Broken.reads == 4


@pytest.mark.parametrize("error", LAST, ids=repr)
def test_what_does_not_pass_is_not(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = broken(tmp_path / "x.zarr", error, 10**6, monkeypatch)
    with pytest.raises(DataError, match=r"Chunk 'c/0/0' of .*x.zarr cannot be read \(block 0, rows 0 to 19\)"):
        rows.read(0)
    assert Broken.reads == 1


@pytest.mark.parametrize("codec", [numcodecs.BZ2(), numcodecs.GZip(), numcodecs.Zstd(), numcodecs.LZ4()], ids=repr)
def test_bytes_that_no_codec_wrote_are_read_once(
    codec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "x.zarr", VALUES, (20, 3), zarr_format=2, compressors=codec)
    (tmp_path / "x.zarr" / "0.0").write_bytes(b"these are not the bytes" * 40)
    reads: Counter[str] = Counter()

    async def get(self: Any, key: str, *arguments: Any, **options: Any) -> Any:
        reads[key] += 1
        return await inner(self, key, *arguments, **options)

    inner = LocalStore.get
    monkeypatch.setattr(LocalStore, "get", get)
    with pytest.raises(DataError, match=r"Chunk '0.0' of .*x.zarr cannot be read \(block 0"):
        as_rows(tmp_path / "x.zarr").read(0)
    assert reads["0.0"] == 1
    # Codecs and stores raise OSErrors without a number alike.
    for bad, kind in ((bz2.decompress, OSError), (gzip.decompress, gzip.BadGzipFile)):
        with pytest.raises(kind) as caught:
            bad(b"these are not the bytes" * 40)
        assert isinstance(caught.value, OSError)
        assert caught.value.errno is None


@pytest.mark.parametrize("shards", [None, (8, 3)])
def test_the_bad_one_of_many_chunks_is_found(shards: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(800, 3))
    write(tmp_path / "x.zarr", values, (2, 3), shards=shards, compressors=[zarr.codecs.Crc32cCodec()])
    path = tmp_path / "x.zarr" / ("c/37/0" if shards else "c/151/0")
    data = bytearray(path.read_bytes())
    data[3 * 52 + 7 if shards else 7] ^= 4
    path.write_bytes(data)
    name = r"\(151, 0\) in shard 'c/37/0'" if shards else "'c/151/0'"
    with pytest.raises(DataError, match=rf"Chunk {name} of .*x.zarr cannot be read \(block 0, rows 0 to 799\)"):
        as_rows(tmp_path / "x.zarr").read(0)


# Chunks that read as fill value


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Which objects were looked up, and which shards' indexes were loaded."""
    found: Counter[str] = Counter()
    exists, load = StorePath.exists, ShardingCodec._load_shard_index_maybe

    async def counted(self: StorePath) -> bool:
        found[self.path] += 1
        return await exists(self)

    async def loaded(self: Any, place: Any, each: Any) -> Any:
        found[place.path] += 1
        return await load(self, place, each)

    monkeypatch.setattr(StorePath, "exists", counted)
    monkeypatch.setattr(ShardingCodec, "_load_shard_index_maybe", loaded)
    return found


def test_the_index_of_a_shard_is_loaded_once(asked: Counter[str], tmp_path: Path) -> None:
    write(tmp_path / "x.zarr", np.zeros((400, 3)), (2, 3), shards=(100, 3))
    assert not joined(as_rows(tmp_path / "x.zarr")).any()
    assert asked == {f"c/{i}/0": 1 for i in range(4)}


def test_chunks_are_looked_up_until_one_is_missing(asked: Counter[str], tmp_path: Path) -> None:
    write(tmp_path / "x.zarr", np.zeros((3000, 3)), (2, 3))
    assert not joined(as_rows(tmp_path / "x.zarr")).any()
    assert asked == {f"c/{i}/0": 1 for i in range(1500)}
    asked.clear()
    (tmp_path / "x.zarr" / "c/70/0").unlink()
    with pytest.raises(DataError, match="Chunk 'c/70/0'"):
        as_rows(tmp_path / "x.zarr").read(0)
    assert set(asked) == {f"c/{i}/0" for i in range(2 * chunks.TOGETHER)} | {"zarr.json"}


def test_a_store_that_is_not_there_is_not_filled(asked: Counter[str], tmp_path: Path) -> None:
    values = np.zeros((40, 3))
    values[20:] = 1.0
    write(tmp_path / "x.zarr", values, (10, 3))
    rows = as_rows(tmp_path / "x.zarr", missing_chunks="fill", block_size=240)
    np.testing.assert_array_equal(joined(rows), values)
    assert asked == {"zarr.json": 2}  # for each block of nothing but fill value
    (tmp_path / "x.zarr").rename(tmp_path / "elsewhere.zarr")
    with pytest.raises(DataError, match=r"x.zarr cannot be opened on .*: no Zarr array is there"):
        rows.read(3)


def test_a_store_that_vanishes_within_a_block_is_not_filled(tmp_path: Path) -> None:
    write(tmp_path / "x.zarr", VALUES, (5, 3))
    rows = as_rows(tmp_path / "x.zarr", missing_chunks="fill")
    assert rows.n_blocks == 1
    for lost in ("c/2/0", "zarr.json"):  # the other chunks were read before
        (tmp_path / "x.zarr" / lost).unlink()
    with pytest.raises(DataError, match=r"x.zarr cannot be opened on .*: no Zarr array is there"):
        rows.read(0)


def test_an_emptied_shard_is_not_read_as_fill_value(tmp_path: Path) -> None:
    write(tmp_path / "x.zarr", VALUES, (2, 3), shards=(10, 3))
    (tmp_path / "x.zarr" / "c/1/0").write_bytes(b"")
    with pytest.raises(DataError, match=r"Chunk .* in shard 'c/1/0' of .*x.zarr is not whole: .* no index"):
        as_rows(tmp_path / "x.zarr").read(0)


@pytest.mark.parametrize("span", [(0, 0), (10**6, 48)])
def test_a_shard_that_holds_nothing_of_a_chunk_is_not_read_as_fill_value(span: Any, tmp_path: Path) -> None:
    write(tmp_path / "x.zarr", VALUES, (2, 3), shards=(10, 3), compressors=None)
    path = tmp_path / "x.zarr" / "c/1/0"
    data = path.read_bytes()
    index = np.frombuffer(data[-84:-4], "<u8").reshape(5, 2).copy()
    index[3] = span
    path.write_bytes(data[:-84] + numcodecs.CRC32C(location="end").encode(index.tobytes()).tobytes())
    rows = as_rows(tmp_path / "x.zarr", block_size=48)
    with pytest.raises(DataError, match=r"Chunk \(8, 0\) in shard 'c/1/0' of .*x.zarr is not whole: .* bytes"):
        rows.read(8)


def test_what_no_memory_is_there_for_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.zarr", VALUES, (10, 3))
    monkeypatch.setattr("daskgmm.compute.sources.failures.MEMORY_LIMIT", 479)
    np.testing.assert_array_equal(joined(as_rows(tmp_path / "x.zarr", block_size=1)), VALUES)
    with pytest.raises(DataError, match=r"x.zarr cannot be read in 479 B of memory \(block 0.*480 B at a time"):
        as_rows(tmp_path / "x.zarr").read(0)
    write(tmp_path / "y.zarr", VALUES, (1000, 3))  # a chunk is decoded whole
    with pytest.raises(DataError, match=r"y.zarr cannot be read in 479 B of memory .*23.44 kiB at a time"):
        as_rows(tmp_path / "y.zarr").read(0)


def test_pieces_of_a_region() -> None:
    each, region = (10, 3, 2), (slice(34, 95), slice(0, 5), slice(1, 9))
    assert [part[0] for part in chunks.pieces(region, each, 20)] == [
        slice(34, 50),
        slice(50, 70),
        slice(70, 90),
        slice(90, 95),
    ]
    for most in (1, 3, 20, 70):
        seen = np.zeros((100, 5, 10), int)
        for part in chunks.pieces(region, each, most):
            seen[part] += 1
            assert np.prod([len(numbers) for numbers in chunks.under(part, each)]) <= most
        assert (seen[region] == 1).all()
        assert seen.sum() == seen[region].size


@pytest.mark.parametrize("shards", [None, (4, 2), (20, 4)])
def test_parts_of_a_block_change_nothing(shards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    write(tmp_path / "x.zarr", values, (2, 2), shards=shards)
    for most in (1, 3, 5, 1000):
        monkeypatch.setattr("daskgmm.compute.sources.zarr.AT_ONCE", most)
        np.testing.assert_array_equal(joined(as_rows(tmp_path / "x.zarr")), values)
