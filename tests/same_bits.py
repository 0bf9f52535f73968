"""Whether two versions of daskgmm give the same results, bit for bit.

A script, not a test: it fits, asks, saves, stops and goes on in a thousand ways, through the public interface
alone, and keeps a digest of what comes out of each. Run it on one version, and again on the other:

    python tests/same_bits.py --write bits.json      {name of the case: digest}, and bits.npz beside it
    python tests/same_bits.py --against bits.json    prints the cases that differ, and exits with 1 if any do

``--only WORDS`` runs the cases whose names hold these words, ``--quick`` about every fifth, ``--times`` tells how
long each took. The .npz file holds some numbers of every array, so that a difference can be told in figures.

Within one run, too, some things must agree, or the run fails: fits that were stopped and went on with those that
were not, models that were saved with those that were loaded, and the same fit on threads, in turn, and in two
processes.

Digests belong to one type of processor and one set of library versions; a note says where those are not the same.
A case that takes longer than `LIMIT` ends the run, with a traceback of where it stood.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import logging
import platform
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import cycle, groupby, product
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import dask
import dask.array as da
import distributed
import numba
import numpy as np
import scipy
import sklearn
import zarr
from click.testing import CliRunner

import daskgmm
from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from daskgmm.cli import main as command_line

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Arrays: TypeAlias = dict[str, Array]
Model: TypeAlias = GaussianMixture | MiniBatchGaussianMixture

LIMIT = 300  # seconds for a case, the compiler's included
WAIT = 60  # seconds for the cluster to start
KEPT = 300  # values of an array that the companion holds, at most

KINDS = ("full", "tied", "diag", "spherical")
DTYPES = ("float64", "float32")
HELD = ("numpy", "zarr", "dask")
INIT_PARAMS = ("auto", "kmeans", "k-means++", "random", "random_from_data", "subsample")
ALL_GIVEN = ("weights", "means", "precisions")


# Rows


@dataclass(frozen=True)
class Data:
    """Rows of a mixture, and how they are handed over.

    Attributes
    ----------
    n, d, k : rows, features, components.
    apart : how far the means lie from the origin, in standard deviations.
    weights : a key of `WEIGHTS`; "" for none.
    held : a key of `HOLDERS`.
    form : a key of `FORMS`; "" for rows as they are.
    """

    n: int = 3000
    d: int = 5
    k: int = 3
    apart: float = 3.0
    dtype: str = "float64"
    weights: str = ""
    held: str = "numpy"
    form: str = ""

    def __str__(self) -> str:
        words = (self.dtype, self.form, self.weights, self.held, f"{self.n}x{self.d}", f"k={self.k}")
        return " ".join(word for word in words if word)

    @property
    def labels(self) -> Array:
        """The component of each row."""
        return _made(self.n, self.d, self.k, self.apart)[1]

    @property
    def means(self) -> Array:
        """The means of the components."""
        return _made(self.n, self.d, self.k, self.apart)[2]

    @cache  # noqa: B019  # as many as there are cases, and small
    def rows(self) -> Array:
        """The rows in memory."""
        x = _made(self.n, self.d, self.k, self.apart)[0].astype(self.dtype)
        return FORMS[self.form](x)

    def weight(self) -> Any:
        """The weights in memory: an array, a number or None."""
        return WEIGHTS[self.weights](self.n)

    def given(self, folder: Path) -> tuple[Any, Any]:
        """Rows and weights as an estimator gets them."""
        hold, weight = HOLDERS[self.held], self.weight()
        return hold(self.rows(), folder), hold(weight, folder) if isinstance(weight, np.ndarray) else weight

    def share(self, parts: float) -> int:
        """Bytes of one in so many parts of the rows."""
        return int(self.n * self.d * np.dtype(self.dtype).itemsize / parts)

    @property
    def window(self) -> int:
        """Bytes of a block for online fits, of which a window holds four: one window in memory, else several."""
        return self.share(3 if self.held == "numpy" else 10)


@cache
def _made(n: int, d: int, k: int, apart: float) -> tuple[Array, Array, Array]:
    """Rows with correlated features, labels and means; no library adds such sums up in another order."""
    random = np.random.default_rng([n, d, k])
    means = apart * random.normal(size=(k, d))
    scales = random.uniform(0.5, 1.5, size=(k, d))
    slopes = random.uniform(-0.8, 0.8, size=(k, 1))
    labels = random.integers(k, size=n)
    z = random.normal(size=(n, d))
    return means[labels] + scales[labels] * z + slopes[labels] * np.roll(z, 1, axis=1), labels, means


def _mixed_weights(n: int) -> Array:
    """Weights of which some are 0, the first ones too."""
    weight = np.random.default_rng(n).uniform(0.2, 3.0, size=n)
    weight[:3] = weight[::7] = 0.0
    return weight


def _with_nan(x: Array) -> Array:
    """Some rows with NaN."""
    x = x.copy()
    x[4::11, 0] = x[::13, -1] = np.nan
    return x


def _correlated(x: Array, apart: float = 1e-3) -> Array:
    """Two features that are nearly the same."""
    x = x.copy()
    x[:, -1] = x[:, 0] + x.dtype.type(apart) * x[:, -1]
    return x


def _with_outliers(x: Array) -> Array:
    """Some rows whose squares float32 cannot hold."""
    x = x.copy()
    x[5::37] *= x.dtype.type(1e20)
    return x


WEIGHTS: dict[str, Callable[[int], Any]] = {
    "": lambda n: None,
    "weights": _mixed_weights,
    "tiny weights": lambda n: 1e-8 * _mixed_weights(n),
    "one weight": lambda n: 2.5,
}
FORMS: dict[str, Callable[[Array], Array]] = {
    "": lambda x: x,
    "integers": lambda x: (10 * x).astype(np.int32),
    "bytes": lambda x: np.clip(10 * x + 120, 0, 255).astype(np.uint8),
    "half floats": lambda x: x.astype(np.float16),
    "swapped bytes": lambda x: x.astype(">f8"),
    "columns first": lambda x: np.asfortranarray(x),
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "nan": _with_nan,
    "correlated": _correlated,
    "nearly singular": partial(_correlated, apart=1e-6),
    "coarse": np.round,
    "outliers": _with_outliers,
    "sorted": lambda x: x[np.argsort(x[:, 0], kind="stable")],
}


# How they are held


def _uneven(n: int) -> tuple[int, ...]:
    """Chunks of many sizes."""
    edges = sorted({0, n, *(int(n * part) for part in (0.05, 0.3, 0.31, 0.55, 0.9))})
    return tuple(np.diff(edges).tolist())


def _chunked(x: Array, folder: Path, columns: int | None = None) -> da.Array:
    """A Dask array in uneven chunks."""
    rest = x.shape[1:] if columns is None else tuple([columns] * (x.ndim - 1))
    lazy: da.Array = da.from_array(x, chunks=(_uneven(len(x)), *rest))
    return lazy


def _unknown(x: Array, folder: Path) -> da.Array:
    """A Dask array that does not know the sizes of its chunks."""
    lazy = _chunked(x, folder)
    kept: da.Array = lazy[(lazy if x.ndim == 1 else lazy[:, 0]) > -1e9]
    return kept


def _array(x: Array, folder: Path, left_out: int | None = None, **options: Any) -> zarr.Array[Any]:
    """A Zarr array in some chunks of equal size, all of them written but for one."""
    rows = max(1, len(x) // 13)
    if "shards" in options:
        options["shards"] = (4 * rows, *x.shape[1:])
    array = zarr.create_array(
        str(folder / f"{uuid4().hex}.zarr"),
        shape=x.shape,
        chunks=(rows, *x.shape[1:]),
        dtype=x.dtype,
        config={"write_empty_chunks": True},
        **options,
    )
    array[...] = x
    if left_out is not None and x.ndim == 2:
        (Path(array.store.root) / "c" / str(left_out) / "0").unlink()  # type: ignore[attr-defined]
    return array


def _path(x: Array, folder: Path, **options: Any) -> str:
    """The path of a Zarr array."""
    return str(_array(x, folder, **options).store.root)  # type: ignore[attr-defined]


def _frame(x: Array, folder: Path) -> Any:
    """A pandas data frame or series."""
    import pandas as pd

    return pd.Series(x) if x.ndim == 1 else pd.DataFrame(x, columns=[f"feature {j}" for j in range(x.shape[1])])


def _dask_frame(x: Array, folder: Path) -> Any:
    """The same in partitions."""
    import dask.dataframe as dd

    return dd.from_pandas(_frame(x, folder), npartitions=4)


def _labelled(x: Array, folder: Path) -> Any:
    """An xarray array that holds a Dask array."""
    import xarray as xr

    return xr.DataArray(_chunked(x, folder), dims=("row", "feature")[: x.ndim])


HOLDERS: dict[str, Callable[[Array, Path], Any]] = {
    "numpy": lambda x, folder: x,
    "zarr": _path,
    "dask": _chunked,
    "zarr array": _array,
    "zarr format 2": partial(_path, zarr_format=2),
    "zarr shards": partial(_path, shards=()),
    "zarr with a hole": partial(_path, left_out=2),
    "dask in columns": partial(_chunked, columns=2),
    "dask of unknown sizes": _unknown,
    "dask in one chunk": lambda x, folder: da.from_array(x, chunks=-1),
    "frame": _frame,
    "dask frame": _dask_frame,
    "xarray": _labelled,
}


# What is kept of a model

PARAMETERS = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_")
TRACES = ("lower_bound_", "lower_bounds_", "n_iter_", "n_passes_", "converged_", "n_features_in_")
LEARNT = ("n_samples_seen_", "n_batches_seen_", "effective_sample_size_")


def attributes(model: Model) -> Arrays:
    """All fitted attributes."""
    more = LEARNT if isinstance(model, MiniBatchGaussianMixture) else ()
    return {name: np.asarray(getattr(model, name)) for name in (*PARAMETERS, *TRACES, *more)}


def answers(model: Model, x: Any, weight: Any) -> Arrays:
    """What a model says of rows. Of those that are not in memory, which takes longer, two scores will do."""
    found = {name: np.asarray(getattr(model, name)(x)) for name in ("predict", "predict_proba", "score_samples")}
    in_memory = isinstance(x, np.ndarray)
    for name in ("score", "aic", "bic", "icl") if in_memory else ("score", "icl"):
        found[name] = np.asarray(getattr(model, name)(x, sample_weight=weight))
    if in_memory and weight is not None:
        found["score without weights"] = np.asarray(model.score(x))
    return found


def told(model: Model, x: Any, weight: Any, more: Array, folder: Path) -> Arrays:
    """All that a model tells: attributes, answers, a sample, and the same of what is loaded from its file.

    An online model and its copy then learn ``more``.
    """
    found = attributes(model) | answers(model, x, weight)
    found["sampled rows"], found["sampled components"] = model.sample(20)
    again = reloaded(model, folder)
    same(attributes(model), attributes(again), "after loading")
    found |= {f"loaded {name}": value for name, value in attributes(again).items()}
    if isinstance(model, MiniBatchGaussianMixture):
        one, other = (attributes(m.partial_fit(more)) for m in (model, again))
        same(one, other, "after loading and a batch more")
        found |= {f"later {name}": value for name, value in other.items()}
    return found


def reloaded(model: Any, folder: Path) -> Any:
    """The model from its file."""
    place = folder / f"{uuid4().hex}.npz"
    model.save(place)
    return type(model).load(place)


def same(one: Arrays, other: Arrays, when: str) -> None:
    """Raise unless all arrays have the same bits."""
    everything = one.keys() | other.keys()
    differ = sorted(name for name in everything if not _alike(one.get(name), other.get(name)))
    assert not differ, f"{when}, these differ: {', '.join(differ)}"


def _alike(one: Array | None, other: Array | None) -> bool:
    return one is not None and other is not None and digest(one) == digest(other)


def digest(values: Array) -> str:
    """SHA-256 of an array's type, shape and bits."""
    values = np.ascontiguousarray(values)
    return hashlib.sha256(f"{values.dtype.str} {values.shape}".encode() + values.tobytes()).hexdigest()


# Fits

BATCH: dict[str, Any] = {"random_state": 0, "max_iter": 6, "tol": 1e-9}
ONLINE: dict[str, Any] = {"random_state": 0}
SIZES = (1, 7, 40, 3, 250, 90, 500)  # of the batches of a stream, again and again; 150 rows seed three components


def started(kind: str, data: Data, parts: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Parts of a start, by the names of the estimators' parameters."""
    k, d = data.k, data.d
    matrix, scales = np.eye(d) + 0.1, 0.2 + 0.1 * np.arange(1.0, k + 1)
    precisions: dict[str, Array] = {
        "full": scales[:, None, None] * matrix,
        "tied": matrix,
        "diag": scales[:, None] * np.linspace(0.5, 1.0, d),
        "spherical": scales,
    }
    shares = np.arange(1.0, k + 1)
    responsibilities = np.full((data.n, k), 0.2 / k)
    responsibilities[np.arange(data.n), data.labels] += 0.8
    values: dict[str, Callable[[], Any]] = {
        "weights": lambda: shares / shares.sum(),
        "means": lambda: data.means + 0.1,
        "precisions": lambda: precisions[kind],
        "labels": lambda: HOLDERS[data.held](data.labels, folder),
        "responsibilities": lambda: HOLDERS[data.held](responsibilities, folder),
    }
    return {f"{part}_init": values[part]() for part in parts}


def batch(folder: Path, kind: str, data: Data, start: tuple[str, ...] = (), **settings: Any) -> Arrays:
    """A batch fit."""
    chosen = BATCH | {"n_components": data.k, "covariance_type": kind, "block_size": data.share(4)} | settings
    model = GaussianMixture(**(chosen | started(kind, data, start, folder)))
    x, weight = data.given(folder)
    return told(model.fit(x, sample_weight=weight), x, weight, data.rows()[-60:], folder)


def online(folder: Path, kind: str, data: Data, start: tuple[str, ...] = (), **settings: Any) -> Arrays:
    """An online fit of stored rows, in several windows."""
    chosen = ONLINE | {"n_components": data.k, "covariance_type": kind, "block_size": data.window} | settings
    model = MiniBatchGaussianMixture(**(chosen | started(kind, data, start, folder)))
    x, weight = data.given(folder)
    return told(model.fit(x, sample_weight=weight), x, weight, data.rows()[-60:], folder)


def stream(
    folder: Path,
    kind: str,
    data: Data,
    start: tuple[str, ...] = (),
    sizes: tuple[int, ...] = SIZES,
    saved: tuple[int, ...] = (),
    **settings: Any,
) -> Arrays:
    """A stream of batches; after those that are listed as saved, with the model that is loaded from its file."""
    chosen = ONLINE | {"n_components": data.k, "covariance_type": kind} | settings
    model = MiniBatchGaussianMixture(**(chosen | started(kind, data, start, folder)))
    found, bounds = {}, []
    for number, (x, weight) in enumerate(batches(data, sizes, folder)):
        model.partial_fit(x, sample_weight=weight)
        if number in saved:
            model = reloaded(model, folder)
        if hasattr(model, "means_"):
            bounds.append(model.lower_bound_)
        else:
            found[f"waiting {number}"] = np.array([model.n_samples_seen_, model.n_batches_seen_])
    found["bounds"] = np.array(bounds)
    x, weight = data.given(folder)
    return found | told(model, x, weight, data.rows()[-60:], folder)


def batches(data: Data, sizes: tuple[int, ...], folder: Path) -> Iterator[tuple[Any, Any]]:
    """The rows in batches, with their weights, each held as the data are."""
    rows, weight, hold, first = data.rows(), data.weight(), HOLDERS[data.held], 0
    for size in cycle(sizes):
        if first >= len(rows):
            return
        part = slice(first, first + size)
        yield hold(rows[part], folder), hold(weight[part], folder) if isinstance(weight, np.ndarray) else weight
        first += size


def warm(folder: Path, kind: str, data: Data, **settings: Any) -> Arrays:
    """A batch fit that goes on from another."""
    x, weight = data.given(folder)
    chosen = BATCH | {"n_components": data.k, "covariance_type": kind, "block_size": data.share(4)} | settings
    model = GaussianMixture(**(chosen | {"max_iter": 2, "warm_start": True}))
    model.fit(x, sample_weight=weight)
    return told(model.fit(x, sample_weight=weight), x, weight, data.rows()[-60:], folder)


def warm_online(folder: Path, kind: str, data: Data, **settings: Any) -> Arrays:
    """An online fit that goes on from another."""
    x, weight = data.given(folder)
    chosen = ONLINE | {"n_components": data.k, "covariance_type": kind, "block_size": data.window} | settings
    model = MiniBatchGaussianMixture(**(chosen | {"warm_start": True}))
    model.fit(x, sample_weight=weight)
    return told(model.fit(x, sample_weight=weight), x, weight, data.rows()[-60:], folder)


def taken_over(folder: Path, kind: str, data: Data) -> Arrays:
    """A model that scikit-learn, a batch and an online estimator hand on to each other."""
    x, weight = data.given(folder)
    chosen = BATCH | {"n_components": data.k, "covariance_type": kind}
    first = GaussianMixture.from_sklearn(GaussianMixture(**chosen).fit(x, sample_weight=weight).to_sklearn())
    learner = MiniBatchGaussianMixture.from_parameters(first.weights_, first.means_, first.covariances_, kind)
    learner.set_params(random_state=0).partial_fit(x[:700]).set_params(warm_start=True).fit(x)
    last = GaussianMixture.from_parameters(learner.weights_, learner.means_, learner.covariances_, kind)
    last.set_params(random_state=0, warm_start=True, max_iter=3).fit(x, sample_weight=weight)
    found = {f"scikit-learn {name}": value for name, value in attributes(first).items()}
    found |= {f"learner {name}": value for name, value in attributes(learner).items()}
    return found | told(last, x, weight, x[:10], folder)


def dying(folder: Path, kind: Any, data: Data, start: tuple[str, ...] = ()) -> Arrays:
    """A stream in which all components but one die, and are placed anew."""
    rows, alone = data.rows(), data.rows()[data.labels == 0]
    model = MiniBatchGaussianMixture(data.k, covariance_type=kind, half_life=100.0, random_state=0)
    model.set_params(**started(kind, data, start, folder)).partial_fit(rows[:500])
    found = {}
    for first in range(0, 40 * 60, 60):
        model.partial_fit(alone.take(np.arange(first, first + 60), axis=0, mode="wrap"))
        found[f"weights {first}"] = model.weights_.copy()
    return found | told(model, rows, None, rows[-60:], folder)


def flattened(folder: Path, kind: Any, data: Data) -> Arrays:
    """A stream that forgets all but its last batch, whose rows are equal."""
    rows = data.rows()
    model = MiniBatchGaussianMixture(data.k, covariance_type=kind, half_life=1.0, reg_covar=0.0, random_state=0)
    model.partial_fit(rows[:500]).partial_fit(np.repeat(rows[:1], 100, axis=0))
    return attributes(model) | told(model.partial_fit(rows[500:900]), rows, None, rows[-60:], folder)


def given_late(folder: Path, kind: Any, data: Data) -> Arrays:
    """A stream that gets its start in full after some rows that waited for it."""
    rows = data.rows()
    model = MiniBatchGaussianMixture(data.k, covariance_type=kind, random_state=0).partial_fit(rows[:40])
    model.set_params(**started(kind, data, ALL_GIVEN, folder)).partial_fit(rows[40:400])
    return told(model, rows, None, rows[-60:], folder)


def collapsing(folder: Path, kind: str, data: Data, seed: int) -> Arrays:
    """A fit in which some runs collapse, or all of them do."""
    settings = BATCH | {"covariance_type": kind, "reg_covar": 0.0, "random_state": seed, "max_iter": 30}
    found: Arrays = {}
    for init, n_init in (("random_from_data", 1), ("random_from_data", 6), ("kmeans", 6), ("subsample", 6)):
        name, x = f"{init} {n_init}", data.rows()
        try:
            model = GaussianMixture(data.k, n_init=n_init, **settings | {"init_params": init}).fit(x)
        except daskgmm.CollapseError as error:
            found[f"{name} collapsed"] = np.asarray(error.component)
        else:
            found |= {f"{name} {part}": value for part, value in attributes(model).items()}
    return found


def few_rows(folder: Path, kind: Any, data: Data) -> Arrays:
    """Answers for numbers of rows about those that the kernels take at once."""
    x = data.rows()
    model = GaussianMixture(data.k, covariance_type=kind, random_state=0, max_iter=3)
    found = {"fit_predict": model.fit_predict(x)} | attributes(model)
    for n in (1, 3, 4, 351, 352, 353, 703, 704, 705, 1056):
        found |= {f"{name} of {n}": value for name, value in answers(model, x[:n], None).items()}
    for scale in (1e3, 1e15, 1e25, 1e35):
        found[f"score_samples x {scale:g}"] = model.score_samples(x[:400] * x.dtype.type(scale))
    return found


# Fits that are stopped


class Stopped(Exception):
    """What stops a fit."""


class Reads:
    """Hands blocks on, counts them, and raises an error at the one of a given number."""

    def __init__(self, stop: float = np.inf, error: type[BaseException] = Stopped) -> None:
        self.stop, self.error, self.count, self.lock = stop, error, 0, threading.Lock()

    def __call__(self, block: Array) -> Array:
        with self.lock:
            self.count += 1
            if self.count >= self.stop:
                raise self.error
        return block

    def array(self, x: Array, rows: int) -> da.Array:
        """A lazy array whose blocks of so many rows pass through here whenever they are read."""
        lazy = da.from_array(x, chunks=(rows, *x.shape[1:]))
        meta = np.empty((0, 0), x.dtype)
        seen: da.Array = lazy.map_blocks(self, dtype=x.dtype, meta=meta, name=f"reads-{uuid4().hex}")
        return seen


@dataclass(frozen=True)
class Trial:
    """A fit that may be stopped: in 16 blocks, each of which every pass reads."""

    kind: str
    data: Data
    estimator: type[Model]

    def model(self, place: Path | None) -> Model:
        """What is to be fitted, with a checkpoint or without."""
        settings: dict[str, Any] = {"tol": 0.0, "random_state": 0, "checkpoint": place}
        settings["covariance_type"] = self.kind
        if self.estimator is GaussianMixture:
            return GaussianMixture(self.data.k, max_iter=8, **settings)
        # So few rows to start from that none is held out, and two passes are made; in windows of four blocks.
        settings |= {"max_iter": 2, "init_size": 90, "block_size": self.data.share(16)}
        return MiniBatchGaussianMixture(self.data.k, **settings)

    def fit(self, model: Model, reads: Reads) -> Model:
        """Fit it."""
        x = reads.array(self.data.rows(), self.data.n // 16)
        with dask.config.set({"daskgmm.memory-limit": 0, "daskgmm.checkpoint-interval": "0 s"}):
            model.fit(x, sample_weight=self.data.weight())
        return model

    def told(self, model: Model, folder: Path) -> Arrays:
        """What the fitted model tells."""
        rows = self.data.rows()
        return told(model.set_params(checkpoint=None), rows, self.data.weight(), rows[-60:], folder)


def stopped(folder: Path, kind: str, data: Data, estimator: type[Model], parts: tuple[float, ...]) -> Arrays:
    """A fit that is stopped after some parts of its reads, and goes on from its checkpoint each time.

    It must end as the same fit does that is never stopped, and read less.
    """
    trial, place = Trial(kind, data, estimator), folder / "checkpoint"
    whole = trial.told(trial.fit(trial.model(None), every := Reads()), folder)
    for part in parts:
        try:
            trial.fit(trial.model(place), Reads(int(part * every.count)))
        except Stopped:
            continue
        raise AssertionError("The fit was not stopped.")
    again = trial.told(trial.fit(trial.model(place), rest := Reads()), folder)
    same(whole, again, "after going on from a checkpoint")
    assert rest.count < 0.8 * every.count, f"It read {rest.count} blocks of {every.count}: it did not go on."
    return again


def interrupted(folder: Path, kind: str, data: Data, estimator: type[Model]) -> Arrays:
    """What an interrupt leaves of a fit, and how it goes on."""
    trial, place = Trial(kind, data, estimator), folder / "checkpoint"
    whole = attributes(trial.fit(trial.model(None), every := Reads()))
    model = trial.model(place)
    try:
        with dask.config.set(scheduler="synchronous"):
            trial.fit(model, Reads(int(0.6 * every.count), KeyboardInterrupt))
    except KeyboardInterrupt:
        left = {f"left {name}": value for name, value in attributes(model).items()}
    else:
        raise AssertionError("The fit was not interrupted.")
    same(whole, attributes(trial.fit(model, Reads())), "after an interrupt")
    return left | trial.told(model, folder)


# The command line


def commanded(*words: object) -> dict[str, Any]:
    """What a command prints; it may say that a fit has not converged."""
    result = CliRunner().invoke(command_line, [str(word) for word in (*words, "--json")])
    assert result.exit_code in (0, 3), f"{words}: {result.exit_code}, {result.output}"
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def numbers(found: dict[str, Any]) -> Arrays:
    """The numbers among them that do not tell the time."""
    plain = {name: value for name, value in found.items() if isinstance(value, int | float) and name != "seconds"}
    return {f"printed {name}": np.asarray(value) for name, value in plain.items()}


def commands(folder: Path, kind: str, data: Data) -> Arrays:
    """Fit, predict and score by the command line."""
    x, weight = data.given(folder)
    model, words = folder / "m.npz", ("--covariance-type", kind, "--block-size", data.share(4), "--seed", 3)
    more = ("-k", data.k, "--weights", weight, "--max-iter", 5)
    found = numbers(commanded("fit", x, "--out", model, *words, *more))
    found |= attributes(GaussianMixture.load(model))
    found |= numbers(commanded("score", x, model, "--weights", weight, "--icl"))
    found |= numbers(commanded("info", model))
    for estimator, online_too in ((GaussianMixture, ()), (MiniBatchGaussianMixture, ("--online",))):
        further = folder / f"{estimator.__name__}.npz"
        commanded("fit", x, "--warm-start", model, "--max-iter", 2, "--out", further, *online_too)
        found |= {f"further {part}": value for part, value in attributes(estimator.load(further)).items()}
    for out, asked in (("labels.zarr", ()), ("shares.zarr", ("--proba",))):
        commanded("predict", x, model, "--out", folder / out, *asked)
        found[out] = np.asarray(zarr.open_array(folder / out, mode="r")[...])
    return found


def updates(folder: Path, kind: str, data: Data) -> Arrays:
    """Fit online, and learn what is appended, by the command line."""
    rows, model = data.rows(), folder / "m.npz"
    found: Arrays = {}
    store = _array(rows[:2000], folder)
    x = str(store.store.root)  # type: ignore[attr-defined]
    words = ("--covariance-type", kind, "--block-size", data.share(20), "--seed", 3)
    commanded("fit", x, "-k", data.k, "--online", "--out", model, *words)
    zarr.open_array(x, mode="r+").append(rows[2000:])
    for number, more in enumerate((("--rows", "2000:2333"), ("--rows", "2400:2500"), ())):
        told_here = commanded("update", model, x, "--out", model, "--overwrite", *more)
        found |= {f"{name} {number}": value for name, value in numbers(told_here).items()}
        loaded = attributes(MiniBatchGaussianMixture.load(model))
        found |= {f"{name} {number}": value for name, value in loaded.items()}
    return found


# Cases

THREADS, PROCESSES = "threads", "two processes"
PLACES: dict[str, dict[str, Any]] = {
    THREADS: {},
    "one thread, some kept": {"num_workers": 1, "daskgmm.memory-limit": 60_000},
    "five threads, nothing kept": {"num_workers": 5, "daskgmm.memory-limit": 0},
    "synchronous": {"scheduler": "synchronous"},
    PROCESSES: {},
}


@dataclass(frozen=True)
class Case:
    """Something to run, under a name. All cases of a group must have the same results."""

    name: str
    run: Callable[[Path], Arrays]
    place: str = THREADS
    group: str = ""


def case(what: str, function: Callable[..., Arrays], kind: str, data: Data, **settings: Any) -> Case:
    """A case of a covariance type and some rows, on threads."""
    return Case(f"{what} {kind} {data}", partial(function, kind=kind, data=data, **settings))


def everywhere(what: str, kind: str, data: Data, processes: bool) -> Iterator[Case]:
    """The same in every place, as a group."""
    found = case(what, FUNCTIONS[what], kind, data)
    for place in (place for place in PLACES if processes or place != PROCESSES):
        yield replace(found, name=f"{found.name}, {place}", place=place, group=found.name)


def grid() -> Iterator[Case]:
    """Both estimators and streams, by covariance type, row type, weights and kind of input."""
    for kind, dtype, weights, held in product(KINDS, DTYPES, ("", "weights"), HELD):
        data = Data(dtype=dtype, weights=weights, held=held)
        yield case("batch", batch, kind, data)
        yield case("online", online, kind, data, **({"block_size": data.share(6)} if held == "numpy" else {}))
        yield case("stream", stream, kind, replace(data, n=900))


# Features, few components that lie near each other, and more that lie apart.
SHAPES = (
    (1, 1, 6),
    (2, 3, 20),
    (3, 2, 11),
    (4, 1, 20),
    (5, 4, 13),
    (8, 2, 20),
    (17, 3, 9),
    (33, 2, 12),
    (50, 5, 20),
)


def shapes() -> Iterator[Case]:
    """All ways that the kernels take."""
    for kind, (d, few, many), dtype in product(KINDS, SHAPES, DTYPES):
        near = Data(1500 if d < 30 else 3000, d, few, 1.0, dtype)
        far = replace(near, k=many, apart=30.0)
        yield case("batch near", batch, kind, near, init_params="k-means++", max_iter=4)
        yield case("batch far", batch, kind, far, init_params="random_from_data", max_iter=4)
        if d in (1, 3, 4, 17, 50):
            yield case("online near", online, kind, replace(near, k=few + 1, held="dask"))
            yield case("stream far", stream, kind, replace(far, k=4, n=1000))
    for dtype in DTYPES:
        for d in (4, 8, 33, 50):  # so far apart that they share no work
            yield case("batch very far", batch, "tied", Data(1500, d, 6, 5000.0, dtype), init_params="k-means++")
        for n, d, k in ((1500, 4, 40), (1100, 24, 1030)):  # so many that they share no scatter
            yield case("batch many", batch, "tied", Data(n, d, k, 2.0, dtype), start=("means",), max_iter=1)


def tiles() -> Iterator[Case]:
    """Numbers of rows about those that are taken at once, and far beyond."""
    for kind, dtype in product(KINDS, DTYPES):
        yield case("few rows", few_rows, kind, Data(1056, dtype=dtype))
        for n in (7, 353, 705):
            yield case("batch", batch, kind, Data(n, 5, 2, dtype=dtype, weights="weights"))
        big = Data(70_000, 3, 3, dtype=dtype, held="dask in one chunk")
        yield case("batch", batch, kind, big, max_iter=2, init_params="kmeans")
        yield case("batch", batch, kind, Data(9000, 3, 3, dtype=dtype, form="columns first", held="dask"))


def starts() -> Iterator[Case]:
    """All ways to start a batch fit."""
    small = Data(1500, 2, 4)
    for kind, init in product(KINDS, INIT_PARAMS):
        yield case(f"batch {init}", batch, kind, small, init_params=init)
    for kind in KINDS:
        for init, n_init in (("kmeans", 3), ("random", 4), ("random_from_data", 3), ("subsample", 7)):
            yield case(f"batch {init} n_init={n_init}", batch, kind, small, init_params=init, n_init=n_init)
        for dtype, weights in product(DTYPES, ("", "weights")):
            yield case("batch auto", batch, kind, Data(22_000, 2, 3, 2.0, dtype, weights, "dask"), max_iter=3)
        yield case("batch auto", batch, kind, Data(120_000, 2, 3, 2.0, held="dask"), max_iter=2)
        yield case("batch default", batch, kind, small, block_size="64 MiB", max_iter=100, tol=1e-3)
        yield case("batch seed=7", batch, kind, small, random_state=7, init_params="random_from_data")


def given_starts() -> Iterator[Case]:
    """Starts that are given, in part or in full, and what belongs to going on."""
    parts = (("weights",), ("means",), ("precisions",), ALL_GIVEN, ("labels",), ("responsibilities",))
    for (number, kind), (start, held) in product(enumerate(KINDS), zip(parts, cycle(HELD), strict=False)):
        single = (number + parts.index(start)) % 2
        data = Data(dtype=DTYPES[single], held=held, weights="weights" if single else "")
        yield case(f"batch from {'+'.join(start)}", batch, kind, data, start=start)
    for kind, held in product(KINDS, HELD):
        for each, weights in (("responsibilities", ""), ("labels", "weights")):
            yield case(f"batch from {each}", batch, kind, Data(1200, held=held, weights=weights), start=(each,))
        yield case("batch warm", warm, kind, Data(held=held))
    for kind, dtype in product(KINDS, DTYPES):
        data = Data(dtype=dtype, weights="weights")
        yield case("batch reg_covar=0", batch, kind, data, reg_covar=0.0)
        yield case("batch reg_covar=0", batch, kind, replace(data, form="correlated"), reg_covar=0.0)
        yield case("batch reg_covar=0.1", batch, kind, data, reg_covar=0.1)
        yield case("batch max_iter=0", batch, kind, data, max_iter=0)
        yield case("taken over", taken_over, kind, data)


def online_starts() -> Iterator[Case]:
    """All ways to start and to steer an online fit."""
    small, wide = Data(2000, 2, 4, held="dask"), Data(2000, 4, 3, weights="weights", dtype="float32", held="zarr")
    for kind, init in product(KINDS, INIT_PARAMS):
        yield case(f"online {init}", online, kind, small, init_params=init)
    for kind in KINDS:
        yield case("online default", online, kind, Data(22_000, 2, 3, 2.0), block_size="64 MiB")
        yield case("online small windows", online, kind, Data(2000, 2, 4), block_size=3000)
        yield case("online sorted", online, kind, Data(form="sorted", held="zarr"))
        for start in (("weights",), ("means",), ALL_GIVEN):
            yield case(f"online from {'+'.join(start)}", online, kind, wide, start=start)
        for data in (small, wide):
            yield case("online max_iter=5", online, kind, data, max_iter=5, tol=1e-4)
            yield case("online half_life=500", online, kind, data, half_life=500.0)
            few = {"init_size": 200, "batch_size": 25, "max_iter": 2, "tol": 0.0}
            yield case("online init_size=200", online, kind, data, **few)
            yield case("online warm", warm_online, kind, data)
        yield case("online steady", online, kind, small, learning_decay=1.0, learning_offset=10.0, init_size=300)
        yield case("online reg_covar=0", online, kind, small, reg_covar=0.0)
        yield case("online reg_covar=0.1", online, kind, wide, reg_covar=0.1)


def streams() -> Iterator[Case]:
    """Streams: how they start, fade, and go on from a file."""
    for kind, dtype in product(KINDS, DTYPES):
        data = Data(2000, 4, 3, dtype=dtype, weights="weights" if dtype == "float64" else "")
        plain = case("stream", stream, kind, data)
        yield replace(plain, group=plain.name)
        kept = case("stream saved now and then", stream, kind, data, saved=(0, 2, 4, 9))  # twice before the start
        yield replace(kept, group=plain.name)
        yield case("stream half_life=300", stream, kind, data, half_life=300.0)
        yield case("stream from all", stream, kind, data, start=ALL_GIVEN)
        yield case("stream of single rows", stream, kind, replace(data, n=200), sizes=(1,))
        yield case("stream of one batch", stream, kind, data, sizes=(2000,))
        yield case("dying", dying, kind, Data(2500, 4, 3, 10.0, dtype))
        yield case("dying from all", dying, kind, Data(2500, 4, 3, 10.0, dtype), start=ALL_GIVEN)
        yield case("flattened", flattened, kind, Data(1000, 3, 3, dtype=dtype))
        yield case("given late", given_late, kind, Data(1000, 3, 3, dtype=dtype))
    for kind, init in product(KINDS, INIT_PARAMS):
        yield case(f"stream {init}", stream, kind, Data(1200, 3, 3), init_params=init, init_size=400)


def forms() -> Iterator[Case]:
    """Types and layouts of values, missing ones, and what float32 can hardly hold."""
    layouts = ("integers", "bytes", "half floats", "swapped bytes", "columns first", "strided")
    for kind, form in product(KINDS, layouts):
        yield case("batch", batch, kind, Data(1500, form=form))
        yield case("online", online, kind, Data(1500, form=form))
    for (number, kind), dtype in product(enumerate(KINDS), DTYPES):
        for (what, function), held in zip(FUNCTIONS.items(), HELD, strict=True):
            weights = "weights" if (number % 2 == 0) == (dtype == "float32") else ""
            data = Data(2000, form="nan", dtype=dtype, weights=weights, held=held)
            yield case(what, function, kind, data, nan_policy="omit")
    for kind, weights in product(KINDS, ("tiny weights", "one weight")):
        for what, function in FUNCTIONS.items():
            yield case(what, function, kind, Data(1500, dtype="float32", weights=weights))
    for kind in KINDS:
        yield case("batch", batch, kind, Data(1500, form="correlated", dtype="float32"))
        outliers = Data(1500, form="outliers", dtype="float32")
        yield case("batch", batch, kind, outliers, start=ALL_GIVEN, max_iter=1)


FUNCTIONS: dict[str, Callable[..., Arrays]] = {"batch": batch, "online": online, "stream": stream}


def collapses() -> Iterator[Case]:
    """Few rows, coarse or nearly singular: some runs collapse, or all of them."""
    few = ((120, 3, 8, "coarse"), (60, 2, 6, "coarse"), (30, 2, 5, "coarse"), (40, 4, 4, ""))
    for kind, (n, d, k, form), seed in product(KINDS, few, (0, 1)):
        yield case(f"collapsing seed={seed}", collapsing, kind, Data(n, d, k, 2.0, form=form), seed=seed)
    for kind in KINDS:
        yield case("collapsing", collapsing, kind, Data(200, 3, 3, 2.0, form="nearly singular"), seed=0)


def holders() -> Iterator[Case]:
    """Rarer ways to hold rows."""
    others = [held for held in HOLDERS if held not in HELD]
    for (number, kind), (other, held) in product(enumerate(KINDS), enumerate(others)):
        data = Data(1000, held=held, dtype=DTYPES[(number + other) % 2], weights=("weights", "")[number // 2])
        for what, function in (("batch", batch), ("online", online)):
            yield case(what, function, kind, data, missing_chunks="fill" if "hole" in held else "raise")


def checkpoints() -> Iterator[Case]:
    """Fits that are stopped, once or twice."""
    for (number, kind), dtype in product(enumerate(KINDS), DTYPES):
        for estimator in (GaussianMixture, MiniBatchGaussianMixture):
            online_too = estimator is MiniBatchGaussianMixture
            twice = (number + (dtype == "float32") + online_too) % 2 == 1
            data = Data(2400, 3, 3, dtype=dtype, weights="" if twice else "weights")
            what = f"{'online' if online_too else 'batch'} stopped{' twice' if twice else ''}"
            yield case(what, stopped, kind, data, estimator=estimator, parts=(0.5, 0.4) if twice else (0.6,))
            if twice:
                yield case(f"{what[:6].strip()} interrupted", interrupted, kind, data, estimator=estimator)


def places() -> Iterator[Case]:
    """The same fits on threads, in turn, and in two processes."""
    for number, kind in enumerate(KINDS):
        stored, lazy = Data(2000, 6, weights="weights", held="zarr"), Data(2000, 6, dtype="float32", held="dask")
        for what, data in product(("batch", "online"), (stored, lazy)):
            yield from everywhere(what, kind, data, processes=(data is stored) == (number % 2 == 0))


def by_command() -> Iterator[Case]:
    """The command line."""
    for kind, dtype in product(KINDS, DTYPES):
        yield case("commands", commands, kind, Data(dtype=dtype, weights="weights", held="zarr"))
        yield case("updates", updates, kind, Data(dtype=dtype))


FAMILIES = (
    grid,
    shapes,
    tiles,
    starts,
    given_starts,
    online_starts,
    streams,
    forms,
    collapses,
    holders,
    checkpoints,
    places,
    by_command,
)


def chosen_cases(only: str, quick: bool) -> list[Case]:
    """The cases to run; those of the cluster come last."""
    found: list[Case] = []
    for family in FAMILIES:
        units = [list(unit) for _, unit in groupby(family(), key=lambda one: one.group or one.name)]
        found += [one for unit in units[:: 5 if quick else 1] for one in unit]
    twice = sorted(name for name, times in Counter(one.name for one in found).items() if times > 1)
    assert not twice, f"Several cases have one name: {twice}"
    return sorted((one for one in found if only in one.name), key=lambda one: one.place == PROCESSES)


# Running them


@dataclass
class Places:
    """Where cases run. Two worker processes of one thread each start when they are first needed."""

    client: Any = None

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Run what is inside there."""
        with dask.config.set(PLACES[place]):
            if place == PROCESSES:
                with self._started().as_current():
                    yield
            else:
                yield

    def _started(self) -> Any:
        if self.client is None:
            size = {"n_workers": 2, "threads_per_worker": 1}
            cluster = distributed.LocalCluster(**size, dashboard_address=":0", silence_logs=logging.ERROR)
            self.client = distributed.Client(cluster, set_as_default=False, timeout=WAIT)
            self.client.wait_for_workers(2, timeout=WAIT)
        return self.client

    def close(self) -> None:
        """End the processes."""
        if self.client is not None:
            self.client.close(timeout=WAIT)
            self.client.cluster.close(timeout=WAIT)


@dataclass(frozen=True)
class Record:
    """What is kept of a case.

    Attributes
    ----------
    digests : of each array, by name.
    shapes : its type and shape, in words.
    values : some of its values, as float64.
    """

    digests: dict[str, str]
    shapes: dict[str, str]
    values: dict[str, Array] = field(compare=False)

    @classmethod
    def of(cls, found: Arrays) -> Record:
        """Of a case's arrays."""
        return cls(
            {name: digest(value) for name, value in found.items()},
            {name: f"{value.dtype.str} {value.shape}" for name, value in found.items()},
            {name: _some(value) for name, value in found.items()},
        )

    @property
    def digest(self) -> str:
        """Of all arrays."""
        return hashlib.sha256(json.dumps(self.digests).encode()).hexdigest()

    def parts(self) -> list[list[Any]]:
        """Of each array its name, digest, shape and how many values are kept."""
        return [[part, self.digests[part], self.shapes[part], len(some)] for part, some in self.values.items()]

    def against(self, other: Record) -> list[str]:
        """A sentence for each array that differs from the other's."""
        told = []
        for name in dict.fromkeys((*self.digests, *other.digests)):
            if name not in self.digests or name not in other.digests:
                told.append(f"{name}: only {'there' if name in other.digests else 'here'}")
            elif self.shapes[name] != other.shapes[name]:
                told.append(f"{name}: {other.shapes[name]} there, {self.shapes[name]} here")
            elif self.digests[name] != other.digests[name]:
                told.append(f"{name}: {_difference(self.values[name], other.values[name])}")
        return told


def _some(values: Array) -> Array:
    """All values of a small array, evenly chosen ones of a large one."""
    flat = np.asarray(values).ravel()
    return flat[:: -(-len(flat) // KEPT) or 1].astype(np.float64)


def _difference(one: Array, other: Array) -> str:
    """The largest relative difference, in words."""
    with np.errstate(all="ignore"):
        apart = np.abs(one - other) / np.maximum(np.abs(one), np.abs(other))
    apart[(one == other) | (np.isnan(one) & np.isnan(other))] = 0.0
    if not apart.any():
        return "differs, but in none of the values that are kept"
    largest = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
    return f"largest relative difference {apart[largest]:.2g}, {other[largest]!r} there, {one[largest]!r} here"


def run_all(cases: list[Case], times: bool) -> tuple[dict[str, Record], list[str]]:
    """What is found, and sentences on what failed."""
    found: dict[str, Record] = {}
    failed: list[str] = []
    where = Places()
    for one in cases:
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        began = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder, where.at(one.place), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[one.name] = Record.of(one.run(Path(folder)))
        except Exception as error:  # whatever the other version may raise
            failed.append(f"{one.name}\n    failed: {type(error).__name__}: {error}")
        if times:
            print(f"{time.perf_counter() - began:7.2f} s  {one.name}", flush=True)
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    where.close()
    faulthandler.cancel_dump_traceback_later()
    return found, failed + disagreements(cases, found)


def disagreements(cases: list[Case], found: dict[str, Record]) -> list[str]:
    """Cases of one group whose results are not the same."""
    first: dict[str, str] = {}
    told = []
    for one in cases:
        if one.group and one.name in found:
            leader = first.setdefault(one.group, one.name)
            if differences := found[one.name].against(found[leader]):
                told.append(_listed(f"{one.name}\n    is not as {leader}", differences))
    return told


def _listed(title: str, lines: Iterable[str]) -> str:
    return "\n    ".join((title, *lines))


# Files


def versions() -> dict[str, str]:
    """What digests depend on beside this library."""
    modules = (np, scipy, numba, sklearn, dask, zarr)
    return {module.__name__: module.__version__ for module in modules} | {"machine": platform.machine()}


def write(place: Path, found: dict[str, Record]) -> None:
    """Digests to one file, values to its companion."""
    place.write_text(json.dumps({name: record.digest for name, record in found.items()}, indent=1) + "\n")
    cases = {name: record.parts() for name, record in found.items()}
    notes = json.dumps({"versions": versions(), "cases": cases})
    arrays = {name: np.concatenate([np.empty(0), *record.values.values()]) for name, record in found.items()}
    np.savez_compressed(place.with_suffix(".npz"), notes=np.array(notes), **arrays)  # type: ignore[arg-type]


def read(place: Path) -> tuple[dict[str, str], dict[str, Record]]:
    """Digests, and what the companion holds, if it is there."""
    digests: dict[str, str] = json.loads(place.read_text())
    companion = place.with_suffix(".npz")
    if not companion.exists():
        return digests, {}
    with np.load(companion, allow_pickle=False) as archive:
        notes = json.loads(str(archive["notes"]))
        values = {name: archive[name] for name in notes["cases"]}
    for name, version in versions().items():
        if (there := notes["versions"].get(name)) != version:
            print(f"Note: {name} is {version} here, and was {there} there.")
    records = {}
    for name, parts in notes["cases"].items():
        names, hashes, shapes, sizes = zip(*parts, strict=True)
        pieces = np.split(values[name], np.cumsum(sizes)[:-1])
        columns = (dict(zip(names, column, strict=True)) for column in (hashes, shapes, pieces))
        records[name] = Record(*columns)
    return digests, records


def compare(found: dict[str, Record], place: Path) -> list[str]:
    """Sentences on the cases that differ from those of a file."""
    digests, records = read(place)
    told = []
    for name, record in found.items():
        if name not in digests:
            told.append(f"{name}\n    is not in {place}")
        elif record.digest != digests[name]:
            other = records.get(name)
            lines = record.against(other) if other else ["differs"]
            told.append(_listed(name, lines or ["the order of its arrays differs"]))
    if rest := len(digests.keys() - found.keys()):
        print(f"Of {place}, {rest} cases were not run.")
    return told


def main() -> int:
    """Run as the command line says; 1 where anything differs or fails."""
    parser = argparse.ArgumentParser(description="Whether two versions of daskgmm give the same bits.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="BITS.json", help="write the results of this version")
    what.add_argument("--against", type=Path, metavar="BITS.json", help="compare this version with those results")
    parser.add_argument("--only", default="", metavar="WORDS", help="only cases whose names hold these words")
    parser.add_argument("--quick", action="store_true", help="about every fifth case")
    parser.add_argument("--times", action="store_true", help="tell how long each case took")
    options = parser.parse_args()
    print(f"daskgmm {daskgmm.__version__} in {Path(daskgmm.__file__).parent}", flush=True)
    began = time.perf_counter()
    found, wrong = run_all(chosen_cases(options.only, options.quick), options.times)
    if options.write:
        write(options.write, found)
    else:
        wrong += compare(found, options.against)
    for sentence in wrong:
        print(sentence)
    seconds = time.perf_counter() - began
    print(f"{len(found)} cases in {seconds:.0f} s; {len(wrong) or 'no'} differences or failures.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
