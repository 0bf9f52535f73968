"""A fit to an iterator of batches is `partial_fit` over them, one in memory at a time; labels of small types."""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm import DataError, GaussianMixture, MiniBatchGaussianMixture
from daskgmm._typing import Array
from daskgmm.errors import CollapseError

X = np.random.default_rng(0).normal(size=(900, 2)) + 6 * (np.arange(900) % 2)[:, None]
WEIGHT = np.random.default_rng(1).choice([0.0, 0.5, 1.0, 2.0], 900)


def model(**settings: Any) -> MiniBatchGaussianMixture:
    return MiniBatchGaussianMixture(2, random_state=0, **settings)


def parts(values: Array, size: int = 130) -> list[Array]:
    return [values[first : first + size] for first in range(0, len(values), size)]


def partly(values: list[Any], weights: list[Any] | None = None, **settings: Any) -> MiniBatchGaussianMixture:
    learner = model(**settings)
    for batch, weight in zip(values, weights or [None] * len(values), strict=True):
        learner.partial_fit(batch, sample_weight=weight)
    return learner


def same(a: MiniBatchGaussianMixture, b: MiniBatchGaussianMixture) -> bool:
    names = (
        "weights_",
        "means_",
        "covariances_",
        "lower_bound_",
        "n_samples_seen_",
        "n_batches_seen_",
        "next_row_",
    )
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


@given(size=st.integers(90, 900), weighted=st.booleans(), options=st.sampled_from([{}, {"half_life": 300.0}]))
@settings(max_examples=10, deadline=None)
def test_a_fit_to_batches_is_partial_fit(size: int, weighted: bool, options: dict[str, Any]) -> None:
    batches, weights = parts(X, size), parts(WEIGHT, size) if weighted else None
    found = model(**options).fit(iter(batches), sample_weight=iter(weights) if weights else None)
    assert same(found, partly(batches, weights, **options))
    assert (found.n_iter_, found.n_passes_) == (1, 1)


def test_each_fit_begins_anew_unless_warm() -> None:
    batches = parts(X)
    once = partly(batches)
    assert same(model().fit(X).fit(iter(batches)), once)
    assert same(model(warm_start=True).fit(iter(batches)).fit(iter(batches)), partly(batches * 2))
    assert same(model(warm_start=True).fit(iter(batches[:4])).fit(iter(batches[4:])), once)


def test_frames_name_the_features() -> None:
    found = model().fit(pd.DataFrame(part, columns=["a", "b"]) for part in parts(X))
    assert found.feature_names_in_.tolist() == ["a", "b"]
    with pytest.raises(DataError, match="must be in the same order"):
        model().fit(
            pd.DataFrame(part, columns=["a", "b"] if len(part) == 130 else ["b", "a"]) for part in parts(X)
        )


def test_one_batch_is_held_at_a_time() -> None:
    seen: list[weakref.ref[Array]] = []

    def batches() -> Iterator[Array]:
        for part in parts(X):
            assert all(ref() is None for ref in seen)
            batch = part.copy()
            seen.append(weakref.ref(batch))
            yield batch
            del batch

    model().fit(batches())
    assert len(seen) == 7


def broken() -> Iterator[Array]:
    yield from parts(X)
    yield np.full((3, 2), np.nan)


@pytest.mark.parametrize(
    ("batches", "weights", "message"),
    [
        (broken, None, "Batch 7 of X, counted from 0: Input X contains NaN"),
        (lambda: iter([*parts(X), [[1.0, 2, 3]]]), None, "Batch 7 of X, .*: X has 3 features, but .* expecting 2"),
        (lambda: iter([X[:90], X[0]]), None, "(?s)Batch 1 of X, .*: Expected 2D array"),
        (lambda: iter([]), None, "X gave no batch"),
        (lambda: iter([X[:30]]), None, "70 more rows are needed to start a model"),
        (lambda: iter(parts(X)), WEIGHT, "sample_weight has to be an iterator, too"),
        (lambda: iter(parts(X)), iter(parts(WEIGHT)[:5]), "sample_weight ended before X"),
        (lambda: iter(parts(X)[:5]), iter(parts(WEIGHT)), "X ended before sample_weight"),
    ],
)
def test_what_is_refused_leaves_the_last_fit(batches: Any, weights: Any, message: str) -> None:
    found = model().fit(X)
    before = found.mixture_
    with pytest.raises(DataError, match=message):
        found.fit(batches(), sample_weight=weights)
    assert found.mixture_ is before


@pytest.mark.parametrize("options", [{"max_iter": 3}, {"checkpoint": "fit.ckpt"}])
def test_batches_are_gone_through_once(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="can be gone through once: set max_iter to 1 and checkpoint to None"):
        model(**options).fit(iter(parts(X)))
    with pytest.raises(DataError, match=r"MiniBatchGaussianMixture\.fit"):
        GaussianMixture(2).fit(iter(parts(X)))


def test_nothing_is_left_to_predict() -> None:
    batches: Any = iter(parts(X))
    with pytest.raises(DataError, match="there is nothing left to predict after a fit"):
        model().fit_predict(batches)
    assert len(list(batches)) == 7


def test_a_collapse_is_told_with_its_batch() -> None:
    with pytest.raises(CollapseError, match=r"Batch 0 of X, .*not positive definite") as caught:
        model(reg_covar=0.0, init_size=100).fit(iter([np.ones((100, 2))]))
    assert caught.value.component in (0, 1)


def test_a_first_batch_of_few_labelled_rows() -> None:
    def batch(first: int) -> xr.DataArray:
        return xr.DataArray(X[first : first + 1], dims=("time", "gene"), coords={"gene": ["a", "b"]})

    found = model(init_size=90).fit(batch(first) for first in range(200))
    assert same(found, partly(parts(X[:200], 1), init_size=90))
    assert found.feature_names_in_.tolist() == ["a", "b"]


def test_an_interrupt_leaves_what_was_learnt() -> None:
    def batches() -> Iterator[Array]:
        yield from parts(X)[:4]
        raise KeyboardInterrupt

    found = model()
    with pytest.raises(KeyboardInterrupt):
        found.fit(batches())
    assert same(found, partly(parts(X)[:4]))


# Types of labels


@pytest.mark.parametrize(("k", "dtype"), [(1, "i1"), (128, "i1"), (129, "i2"), (2**15, "i2"), (2**15 + 1, "i4")])
def test_the_smallest_type_holds_all_labels(k: int, dtype: str) -> None:
    last = np.zeros(k)
    last[-1] = 1.0
    found = GaussianMixture.from_parameters(last, np.zeros((k, 1)), np.ones(k), "spherical")
    labels = found.predict(np.zeros((3, 1)), dtype="smallest")
    assert labels.dtype == dtype
    assert labels.tolist() == [k - 1] * 3


def test_labels_of_another_type() -> None:
    da = pytest.importorskip("dask.array")
    x = X.copy()
    x[7] = np.nan
    found = GaussianMixture(2, random_state=0, nan_policy="omit").fit(x)
    expected = found.predict(x)
    for data in (x, da.from_array(x, (100, 2))):
        for dtype in ("smallest", np.int16, "i4"):
            labels = found.predict(data, dtype=dtype)
            assert labels.dtype == np.asarray(labels).dtype == ("i1" if dtype == "smallest" else dtype)
            np.testing.assert_array_equal(np.asarray(labels), expected)
    assert expected[7] == -1
    for dtype in ("u1", "f8"):
        with pytest.raises(ValueError, match="dtype must be 'smallest' or a signed integer type"):
            found.predict(x, dtype=dtype)
