"""Model files and checkpoints of every kind, and ways to spoil them: any byte, or contents under right digests."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import dask
import numpy as np

from daskgmm import BayesianGaussianMixture, GaussianMixture, MiniBatchGaussianMixture, watching
from daskgmm.store import files
from tests.listeners import stop

Arrays: TypeAlias = dict[str, Any]
Random: TypeAlias = np.random.Generator

KINDS = ("full", "tied", "diag", "spherical")
FORMAT1 = Path(__file__).parent / "data" / "format1"
X = np.random.default_rng(0).normal(size=(300, 2)) + 4.0 * (np.arange(300)[:, None] % 3)
LABELS = np.arange(300) % 3
GIVEN = {"weights_init": [0.5, 0.3, 0.2], "means_init": X[:3], "precisions_init": np.stack([np.eye(2)] * 3)}


def models(folder: Path) -> dict[str, bytes]:
    """Sound model files."""
    batch, online, path = GaussianMixture, MiniBatchGaussianMixture, folder / "m.npz"
    made: dict[str, Any] = {}
    for kind in KINDS:
        settings: Any = {"n_components": 3, "covariance_type": kind, "random_state": 0}
        made[f"batch {kind}"] = batch(**settings).fit(X)
        made[f"stream {kind}"] = online(**settings).partial_fit(X[:200]).partial_fit(X[200:])
    for prior in ("dirichlet_process", "dirichlet_distribution"):
        settings = {"n_components": 3, "weight_concentration_prior_type": prior, "random_state": 0}
        made[prior] = BayesianGaussianMixture(**settings).fit(X)
    made["given"] = batch(3, **GIVEN, max_iter=5).fit(X)  # type: ignore[arg-type]
    made["online"] = online(3, random_state=0, half_life=50.0).fit(X)
    made["online given"] = online(3, **GIVEN).partial_fit(X)  # type: ignore[arg-type]
    waiting = online(3, random_state=0).partial_fit(X[:20])
    made["waiting"] = waiting.partial_fit(X[20:50], sample_weight=X[:30, 0] ** 2)
    parameters = ([0.5, 0.5], [[0.0, 0], [4, 4]], [[1.0, 2], [1, 1]], "diag")
    made["named"] = online.from_parameters(*parameters, feature_names=["α", "b"])
    found = {f"{path.stem}, format 1": path.read_bytes() for path in sorted(FORMAT1.iterdir())}
    for name, model in made.items():
        model.save(path)
        found[name] = path.read_bytes()
    return found


# Fits whose checkpoints are spoilt, and the states at which they are stopped; None lets them end.
FITS: dict[str, tuple[type[Any], dict[str, Any], tuple[int | None, ...]]] = {
    **{kind: (GaussianMixture, {"covariance_type": kind}, (3, None)) for kind in KINDS},
    "start": (GaussianMixture, {"labels_init": LABELS}, (0, 1)),
    "several": (GaussianMixture, {"init_params": "random", "n_init": 3}, (4,)),
    "bayesian": (BayesianGaussianMixture, {}, (3, None)),
    "bayesian tied": (BayesianGaussianMixture, {"covariance_type": "tied", "init_params": "subsample"}, (4,)),
    "online": (MiniBatchGaussianMixture, {"batch_size": 50}, (1, 2, 5, None)),
    "online tied": (MiniBatchGaussianMixture, {"batch_size": 50, "covariance_type": "tied"}, (4,)),
    "online given": (MiniBatchGaussianMixture, {"batch_size": 50, **GIVEN}, (3,)),
}


def fit(name: str, place: Path | None) -> Any:
    kind, settings, _ = FITS[name]
    same: dict[str, Any] = {"n_components": 3, "random_state": 0, "max_iter": 4, "tol": 0.0, "checkpoint": place}
    return kind(**same | settings).fit(X)


def checkpoints(folder: Path) -> dict[tuple[str, int | None], bytes]:
    """Sound checkpoints, by the fit and where it was stopped."""
    found, place = {}, folder / "c"
    with dask.config.set({"daskgmm.checkpoint-interval": "0 s"}):
        for name, (_, _, ends) in FITS.items():
            for end in ends:
                try:
                    with watching(*([] if end is None else [stop(end)])):
                        fit(name, place)
                except KeyboardInterrupt:
                    pass
                found[name, end] = place.read_bytes()
                place.unlink()
    return found


def spoilt(content: bytes, other: bytes, random: Random) -> bytes:
    """The file with something changed."""
    if random.random() < 0.35:
        ways: list[Callable[..., bytes]] = [_flipped, _cut, _spliced, _zeroed, _repeated]
        return ways[random.integers(len(ways))](content, other, random)
    header, arrays = taken_apart(content)
    change = [_array, _array, _leaf, _leaf, _leaf, _table, _members][random.integers(7)]
    change(header, arrays, random)
    return put_together(header, arrays, random)


def taken_apart(content: bytes) -> tuple[Any, Arrays]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(str(arrays.pop("header"))), arrays


def put_together(header: Any, arrays: Arrays, random: Random) -> bytes:
    """A file with right digests, save for one of twenty: that has those of the file before, a bomb, or a lie."""
    told, unusual = header, random.random() < 0.05
    plain = {name: values for name, values in arrays.items() if not values.dtype.hasobject}
    if isinstance(header, dict) and "digest" in header and not (unusual and random.random() < 0.5):
        told = files.sealed({name: value for name, value in header.items() if name != "digest"}, plain)
    written = io.BytesIO()
    np.savez(written, allow_pickle=True, **{"header": np.array(json.dumps(told)), **arrays})
    return _inflated(written.getvalue(), random) if unusual else written.getvalue()


def _inflated(content: bytes, random: Random) -> bytes:
    """A member compressed, to a thousandth where it is made long; or one of a declared size that is not there."""
    source, written = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    chosen = source.namelist()[random.integers(len(source.namelist()))]
    with zipfile.ZipFile(written, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name != chosen:
                target.writestr(name, data)
            elif random.random() < 0.5:
                how = zipfile.ZipInfo(name)
                how.compress_type = zipfile.ZIP_DEFLATED
                with target.open(how, "w") as member:
                    for part in (data, *[bytes(2**20)] * 400):
                        member.write(part)
            else:
                huge = io.BytesIO()
                shape = ((10**12,), (2**33, 3), (0, 10**30), (10**9, 0))[random.integers(4)]
                described = {"descr": "<f8", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(huge, described)
                target.writestr(name, huge.getvalue())
    return written.getvalue()


# Bytes


def _flipped(content: bytes, _: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for place in random.integers(len(content), size=random.integers(1, 9)):
        changed[place] ^= int(random.integers(1, 256))
    return bytes(changed)


def _cut(content: bytes, _: bytes, random: Random) -> bytes:
    return content[: random.integers(len(content))]


def _spliced(content: bytes, other: bytes, random: Random) -> bytes:
    return content[: random.integers(len(content))] + other[random.integers(len(other)) :]


def _zeroed(content: bytes, _: bytes, random: Random) -> bytes:
    first, n = random.integers(len(content)), random.integers(1, 400)
    return content[:first] + bytes(len(content[first : first + n])) + content[first + n :]


def _repeated(content: bytes, _: bytes, random: Random) -> bytes:
    first, last = sorted(random.integers(len(content), size=2))
    return content[:last] + content[first:]


# Contents

NUMBERS = [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 1.0, 2.0, 1e308, -1e308, 5e-324, 1e-300]
SHAPES: list[Callable[[Any], Any]] = [
    lambda v: v[:-1] if v.ndim else v[None],
    lambda v: np.concatenate([v, v]) if v.ndim else v,
    lambda v: v.ravel(),
    lambda v: v[None],
    lambda v: v.T,
    lambda v: v[:0] if v.ndim else v,
    lambda v: v[::-1] if v.ndim else v,
    lambda v: np.empty((0, 0)),
    lambda v: np.float64(1.0),
    lambda v: v[..., None],
]
DTYPES = ["f4", "f2", ">f8", "i8", "u1", "?", "c16", "U3", "S2", "O", "V8"]
PLAIN: list[Any] = [None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, -(10**40), 0.5, -0.5, 1e308]
PLAIN += [np.nan, np.inf, -np.inf, "", "x", "full", "diag", "3", [], {}, [1], [[]], {"array": "x"}]
PLAIN += [{"tuple": []}, {"tuple": [1.5, 2.5]}, {"dict": {}}, {"structure": "tied"}]
PLAIN += [{"value": "Mixture", "parts": {}}, {"error": "CollapseError", "args": []}]


def _array(_: Any, arrays: Arrays, random: Random) -> None:
    name = list(arrays)[random.integers(len(arrays))]
    values = np.array(arrays[name])
    match random.integers(7):
        case 0 | 1 if values.size and values.dtype.kind == "f":
            values.flat[random.integers(values.size)] = NUMBERS[random.integers(len(NUMBERS))]
        case 2 if values.size and values.dtype.kind == "f":
            values.flat[random.integers(values.size)] *= (-1, 1 + 1e-9, 1.1, 1e6, 1e-6)[random.integers(5)]
        case 3:
            values = random.permutation(values) if values.ndim else values
        case 4 if values.dtype.kind == "f":
            values = values * (-1, 0, 2, np.nan)[random.integers(4)]
        case 5:
            with np.errstate(all="ignore"):
                try:
                    values = values.astype(DTYPES[random.integers(len(DTYPES))])
                except (TypeError, ValueError):
                    values = np.zeros(3, "V8")
        case _:
            values = np.asarray(SHAPES[random.integers(len(SHAPES))](values))
    arrays[name] = values


def _places(told: Any) -> Iterator[tuple[Any, Any]]:
    """Every table or list in JSON, with every key or number in it."""
    entries = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    for key, value in list(entries):
        yield told, key
        yield from _places(value)


def _leaf(header: Any, _: Arrays, random: Random) -> None:
    """Another value in one place, or that of another place."""
    found = [(table, key) for table, key in _places(header) if key not in ("digest", "arrays")]
    table, key = found[random.integers(len(found))]
    value, (source, place) = table[key], found[random.integers(len(found))]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and random.random() < 0.4:
        table[key] = [value + 1, -value, value * 1.5, value / 2, float(value), str(value)][random.integers(6)]
    elif random.random() < 0.2:
        table[key] = copy.deepcopy(source[place])
    elif random.random() < 0.05:
        deep: Any = 0
        for _depth in range(400):
            deep = {"tuple": [deep]}
        table[key] = deep
    else:
        table[key] = copy.deepcopy(PLAIN[random.integers(len(PLAIN))])


def _table(header: Any, _: Arrays, random: Random) -> None:
    """One entry more, fewer, or under another name."""
    found = list(_places(header))
    table, key = found[random.integers(len(found))]
    match random.integers(3):
        case 0:
            del table[key]
        case 1 if isinstance(table, dict):
            table[f"{key}x"] = table.pop(key)
        case _ if isinstance(table, dict):
            table["more"] = copy.deepcopy(table[key])
        case _:
            table.append(copy.deepcopy(table[key]))


def _members(_: Any, arrays: Arrays, random: Random) -> None:
    """An array more or fewer, or two of them the other way round."""
    first, second = (list(arrays)[i] for i in random.integers(len(arrays), size=2))
    match random.integers(4):
        case 0:
            del arrays[first]
        case 1:
            arrays[f"{first}x"] = arrays.pop(first)
        case 2:
            arrays["more"] = np.zeros(3)
        case _:
            arrays[first], arrays[second] = arrays[second], arrays[first]
