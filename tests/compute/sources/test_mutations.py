"""Stores that are not what they say: a fit ends in a right result, or in an error that says where they are bad.

The slow test mutates 600 stores and prints how each of them ended; the others are its cases by name.
"""

import json
import pickle
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import psutil
import pytest
import zarr

from daskgmm import GaussianMixture
from daskgmm._typing import Array
from daskgmm.compute.rows import as_rows
from daskgmm.errors import CollapseError, DataError
from tests.compute.arrays import write

N, D = 96, 3
X = np.random.default_rng(0).normal(size=(N, D)) + 6 * (np.arange(N) % 2)[:, None]
MiB = 2**20

CHUNKS: dict[str, Any] = {"chunks": (16, D)}
SHARDS: dict[str, Any] = {"chunks": (8, D), "shards": (32, D)}
CRC, ZSTD = zarr.codecs.Crc32cCodec(), zarr.codecs.ZstdCodec(level=1)
STORES: dict[str, dict[str, Any]] = {
    "v2 raw": {**CHUNKS, "zarr_format": 2, "compressors": None},
    "v2 zstd": {**CHUNKS, "zarr_format": 2},
    "v2 gzip": {**CHUNKS, "zarr_format": 2, "compressors": numcodecs.GZip()},
    "v2 bz2": {**CHUNKS, "zarr_format": 2, "compressors": numcodecs.BZ2()},
    "v3 raw": {**CHUNKS, "compressors": None},
    "v3 zstd": CHUNKS,
    "v3 gzip": {**CHUNKS, "compressors": zarr.codecs.GzipCodec()},
    "v3 blosc": {**CHUNKS, "compressors": zarr.codecs.BloscCodec()},
    "v3 crc": {**CHUNKS, "compressors": CRC},
    "v3 zstd crc": {**CHUNKS, "compressors": [ZSTD, CRC]},
    "sharded raw": {**SHARDS, "compressors": None},
    "sharded zstd": SHARDS,
    "sharded crc": {**SHARDS, "compressors": CRC},
    "sharded zstd crc": {**SHARDS, "compressors": [ZSTD, CRC]},
}
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of Zarr, about what it finds, and of fits that did not converge
    pytest.mark.timeout(300),
]


def fresh(place: Path, name: str) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    write(place, X, **STORES[name])
    return place


def objects(place: Path) -> list[Path]:
    """The files of a store that hold chunks or shards."""
    files = (path for path in place.rglob("*") if path.is_file())
    return sorted(path for path in files if not path.name.startswith((".z", "zarr.")))


def metadata(place: Path) -> Path:
    return next(path for path in (place / "zarr.json", place / ".zarray") if path.exists())


def fit(place: Any, **options: Any) -> Any:
    """One step from a start that needs no search; every block is a chunk or a shard."""
    start = X[[0, 1]]
    model = GaussianMixture(2, max_iter=1, means_init=start, init_params="random_from_data", random_state=0)
    return model.set_params(block_size=1, **options).fit(place)


# What may happen to the bytes of one object, by a name that the counts show.


def flip(data: bytes, random: Any) -> bytes:
    at = random.integers(len(data))
    return data[:at] + bytes([data[at] ^ 1 << int(random.integers(8))]) + data[at + 1 :]


def scribble(data: bytes, random: Any) -> bytes:
    first, size = random.integers(len(data)), random.integers(1, 40)
    return data[:first] + bytes(random.bytes(size)) + data[first + size :]


BYTES: dict[str, Callable[[bytes, Any], bytes]] = {
    "flip": flip,
    "scribble": scribble,
    "truncate": lambda data, random: data[: random.integers(1, len(data))],
    "empty": lambda data, random: b"",
    "append": lambda data, random: data + random.bytes(random.integers(1, 100)),
    "noise": lambda data, random: random.bytes(len(data)),
    "behead": lambda data, random: data[random.integers(1, len(data)) :],
}


def remove(paths: list[Path], random: Any) -> None:
    paths[random.integers(len(paths))].unlink()


def folder(paths: list[Path], random: Any) -> None:
    path = paths[random.integers(len(paths))]
    path.unlink()
    path.mkdir()


def swap(paths: list[Path], random: Any) -> None:
    one, two = random.choice(len(paths), 2, replace=False)
    first, second = paths[one].read_bytes(), paths[two].read_bytes()
    paths[one].write_bytes(second)
    paths[two].write_bytes(first)


FILES: dict[str, Callable[[list[Path], Any], None]] = {"remove": remove, "folder": folder, "swap": swap}

# What a value in the metadata may become.
VALUES: list[Any] = [
    *(-1, 0, 1, 7, 2**31, 10**10, 10**12, 10**30, 10**400, 2.5, True, False, None),
    *("", "x", "float32", "<f4", ">f8", "|O", "int64", "complex128", "string", "zstd", "crc32c", "bytes", "NaN"),
    *([], {}, [0, 0], [-1, 3], [10**12, 3], [1, 1], [10**10, 3], [96, 10**7], [[]], {"name": "x"}, "\x1b]0;x\x07"),
]


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from leaves(value[key])


def other_value(text: str, random: Any) -> str:
    document = json.loads(text)
    places = list(leaves(document))
    container, key = places[random.integers(len(places))]
    container[key] = VALUES[random.integers(len(VALUES))]
    return json.dumps(document)


def lost_key(text: str, random: Any) -> str:
    document = json.loads(text)
    places = [(container, key) for container, key in leaves(document) if isinstance(container, dict)]
    container, key = places[random.integers(len(places))]
    del container[key]
    return json.dumps(document)


def huge(text: str, random: Any) -> str:
    """Shapes of rows and chunks, or of either, that no small file holds."""
    document = json.loads(text)
    size = int(10 ** random.uniform(6, 13))
    choice = random.integers(3)
    if choice != 0:
        document["shape"][0] = size
    if choice != 1 and "chunks" in document:
        document["chunks"][0] = size
    elif choice != 1:
        document["chunk_grid"]["configuration"]["chunk_shape"][0] = size // 32 * 32
    return json.dumps(document)


TEXT: dict[str, Callable[[str, Any], str]] = {
    "other value": other_value,
    "lost key": lost_key,
    "huge shape": huge,
    "cut off": lambda text, random: text[: random.integers(len(text))],
    "deep": lambda text, random: "[" * 100_000 + "]" * 100_000,
    "binary": lambda text, random: "\x00\x7f" * 50,
    "a letter": lambda text, random: text.replace(text[random.integers(len(text))], "9", 1),
}
KINDS = (*BYTES, *FILES, *TEXT, *4 * ["other value"])  # of which there are most


def mutated(place: Path, kind: str, random: Any) -> None:
    paths = objects(place)
    if kind in BYTES:
        path = paths[random.integers(len(paths))]
        path.write_bytes(BYTES[kind](path.read_bytes(), random))
    elif kind in FILES:
        FILES[kind](paths, random)
    else:
        metadata(place).write_text(TEXT[kind](metadata(place).read_text(), random))


def outcome(place: Path, expected: Array) -> tuple[str, str]:
    """How a fit and a score of a store ended, and what was told; what is not documented passes through."""
    try:
        model = fit(place)
        score = model.score(place)
    except (CollapseError, FileNotFoundError, DataError) as error:
        return type(error).__name__, str(error)
    assert np.isfinite(model.means_).all()
    assert np.isfinite(score)
    return "right" if np.array_equal(model.means_, expected) else "other", ""


def check(place: Path, kind: str, ended: str, told: str) -> None:
    """What a store with damaged chunks may end in: what Zarr itself says of it."""
    where = rf"Chunk .* of file://{place} "
    absent = re.match(where + r"is not (in the store|whole)", told)  # which Zarr does not tell
    try:
        values = zarr.open_array(place, mode="r")[...]
    except Exception:  # whatever a codec raises
        assert ended == "DataError"
        unreadable = re.match(where + r"cannot be read \(block \d+, rows \d+ to \d+\): ", told)
        # Another chunk may be read first that decodes to nonsense.
        assert absent or unreadable or re.match(r"Input X contains .* block \d", told), told
        return
    assert absent or kind not in ("remove", "folder"), told
    if ended == "other":
        np.testing.assert_allclose(fit(values).means_, fit(place).means_, rtol=1e-9)


class Peak:
    """The memory of this process at its highest, over what it was."""

    def __enter__(self) -> "Peak":
        self.process = psutil.Process()
        self.before = self.highest = self.process.memory_info().rss
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            self.highest = max(self.highest, self.process.memory_info().rss)

    def __exit__(self, *_: Any) -> None:
        self.done.set()
        self.thread.join()
        self.used = self.highest - self.before


# Cases by name


@pytest.mark.parametrize("kind", ["truncate", "empty", "noise", "folder", "remove"])
@pytest.mark.parametrize("name", STORES)
def test_damaged_chunks_are_told_by_their_keys(name: str, kind: str, tmp_path: Path) -> None:
    place = fresh(tmp_path / "x.zarr", name)
    mutated(place, kind, np.random.default_rng(1))
    if "raw" not in name or kind != "noise":
        check(place, kind, *outcome(place, X))
        with pytest.raises(DataError, match=r"Chunk .* of file://.*x.zarr (cannot be read \(block \d|is not)"):
            fit(place)


@pytest.mark.parametrize("name", [name for name in STORES if "crc" in name])
def test_checksums_catch_every_bit(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        mutated(fresh(tmp_path / "x.zarr", name), "flip", random)
        rows = as_rows(tmp_path / "x.zarr")
        with pytest.raises(DataError, match=r"Chunk .* of file://.*x.zarr cannot be read \(block 0"):
            rows.read(0)


BOMBS: dict[str, tuple[dict[str, Any], Any]] = {
    "v2 zstd": ({"zarr_format": 2}, numcodecs.Zstd()),
    "v2 gzip": ({"zarr_format": 2, "compressors": numcodecs.GZip()}, numcodecs.GZip()),
    "v2 blosc": ({"zarr_format": 2, "compressors": numcodecs.Blosc()}, numcodecs.Blosc()),
    "v3 zstd": ({}, numcodecs.Zstd()),
    "v3 gzip": ({"compressors": zarr.codecs.GzipCodec()}, numcodecs.GZip()),
    "v3 blosc": ({"compressors": zarr.codecs.BloscCodec()}, numcodecs.Blosc()),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_chunk_that_grows_stops_at_its_size(name: str, tmp_path: Path) -> None:
    options, codec = BOMBS[name]
    write(tmp_path / "x.zarr", X, (16, D), **options)
    objects(tmp_path / "x.zarr")[0].write_bytes(codec.encode(np.zeros(256 * MiB, np.uint8)))
    rows = pickle.loads(pickle.dumps(as_rows(tmp_path / "x.zarr")))
    with (
        Peak() as peak,
        pytest.raises(DataError, match=r"\(block 0.*the chunk decodes to \d+ bytes"),
    ):
        rows.read(0)
    assert peak.used < 100 * MiB


def test_a_chunk_that_grows_inside_a_shard_stops_at_its_size(tmp_path: Path) -> None:
    place = fresh(tmp_path / "x.zarr", "sharded zstd")
    bomb = numcodecs.Zstd().encode(np.zeros(256 * MiB, np.uint8))
    index = np.array([[0, len(bomb)]] * 4, "<u8").tobytes()
    objects(place)[0].write_bytes(bomb + numcodecs.CRC32C(location="end").encode(index).tobytes())
    rows = pickle.loads(pickle.dumps(as_rows(place)))
    with (
        Peak() as peak,
        pytest.raises(DataError, match=r"Chunk \(0, 0\) in .*the chunk decodes to \d+ bytes"),
    ):
        rows.read(0)
    assert peak.used < 100 * MiB


METADATA: dict[str, dict[str, Any]] = {
    "chunks of nothing": {"chunks": [0, 3]},
    "chunks below nothing": {"chunks": [-16, 3]},
    "chunks of a text": {"chunks": "16"},
    "too few chunks": {"chunks": [16]},
    "a shape below nothing": {"shape": [-5, 3]},
    "a shape that no number of rows has": {"shape": [10**30, 3]},
    "a shape of a float": {"shape": [96.5, 3]},
    "no shape": {"shape": None},
    "chunks of terabytes": {"shape": [10**12, 3], "chunks": [10**12, 3]},
    "a chunk of terabytes": {"chunks": [10**12, 3]},
    "more rows than a machine has": {"shape": [10**12, 3]},
    "an unknown type": {"dtype": "<f3"},
    "another type": {"dtype": "<i2"},
    "an unknown codec": {"compressor": {"id": "pied piper"}},
    "a codec without a name": {"compressor": {"level": 1}},
    "an unknown format": {"zarr_format": 7},
    "a fill value of a text": {"fill_value": "nothing"},
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_of_no_array(case: str, tmp_path: Path) -> None:
    place = fresh(tmp_path / "x.zarr", "v2 zstd")
    path = place / ".zarray"
    path.write_text(json.dumps({**json.loads(path.read_text()), **METADATA[case]}))
    with Peak() as peak, pytest.raises(DataError, match=r"x\.zarr"):
        fit(place)
    assert peak.used < 100 * MiB


@pytest.mark.parametrize("name", ["v2 zstd", "v3 zstd"])
@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000, '{"a":' * 100_000, "null", "\x00\x01"])
def test_metadata_that_is_none(text: str, name: str, tmp_path: Path) -> None:
    place = fresh(tmp_path / "x.zarr", name)
    metadata(place).write_text(text)
    with pytest.raises(DataError, match=r"x\.zarr cannot be opened"):
        fit(place)


@pytest.mark.parametrize("attributes", [["x"], [0, 0], 7, "x", True])
@pytest.mark.parametrize("node", ["array", "group"])
def test_attributes_that_are_none(node: str, attributes: Any, tmp_path: Path) -> None:
    if node == "group":
        zarr.open_group(tmp_path / "g.zarr", mode="w", zarr_format=3)
    fresh(tmp_path / "g.zarr" / "x.zarr", "v3 zstd")
    told = tmp_path / "g.zarr" / ("x.zarr/zarr.json" if node == "array" else "zarr.json")
    told.write_text(json.dumps(json.loads(told.read_text()) | {"attributes": attributes}))
    place = told.parent
    with pytest.raises(DataError, match=rf"{place.name}.* cannot be"):
        GaussianMixture(2, variables=None if node == "array" else ["x.zarr"]).fit(place)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_600_mutated_stores(tmp_path: Path) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    seconds, most = 0.0, 0
    names = list(STORES)
    expected = {name: fit(fresh(tmp_path / "x.zarr", name)).means_ for name in names}
    for seed in range(600):
        random = np.random.default_rng(seed)
        name, kind = names[seed % len(names)], KINDS[seed // len(names) % len(KINDS)]
        place = fresh(tmp_path / "x.zarr", name)
        mutated(place, kind, random)
        begun = time.monotonic()
        with Peak() as peak:
            ended, told = outcome(place, expected[name])
        spent = time.monotonic() - begun
        counts[kind, ended] += 1
        seconds, most = max(seconds, spent), max(most, peak.used)
        case = (
            f"seed {seed}: {kind} of {name} ended as {ended} in {spent:.1f} s, {peak.used / MiB:.0f} MiB: {told}"
        )
        assert spent < 10, case
        assert peak.used < 300 * MiB, case
        if kind not in TEXT:
            check(place, kind, ended, told)
        if "crc" in name and kind in ("flip", "scribble", "truncate", "noise", "behead"):
            assert ended == "DataError", case
        if kind in ("empty", "truncate", "remove", "folder", "deep", "binary"):
            assert ended in ("DataError", "FileNotFoundError"), case
    for (kind, ended), count in sorted(counts.items()):
        print(f"{kind:12} {ended:18} {count}")
    print(dict(Counter(ended for _, ended in counts.elements())), f"{seconds:.1f} s, {most / MiB:.0f} MiB at most")
