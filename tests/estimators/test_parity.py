"""The same start gives scikit-learn's numbers, whatever the chunks; extended precision where it loses digits."""

import itertools
import warnings
from functools import cache
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Theirs

from daskgmm import GaussianMixture
from tests.structures import EPS, KINDS

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

NAMES = {"faithful": 2, "iris": 3, "wine": 3}
ITERATIONS = 20
_DATA: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _data(datasets: dict[str, Any]) -> None:
    _DATA.update(datasets)


@cache
def labels(name: str) -> Any:
    return KMeans(NAMES[name], n_init=3, random_state=0).fit(_DATA[name]).labels_


def start(name: str, kind: str) -> dict[str, Any]:
    """Weights, means and precisions of a partition, computed with NumPy alone."""
    x, k = _DATA[name], NAMES[name]
    groups = [x[labels(name) == j] for j in range(k)]
    # Unit ridge: wine has features that hardly vary within a group.
    full = np.stack([np.cov(g.T, bias=True) + 1e-3 * np.eye(x.shape[1]) for g in groups])
    values = {
        "full": full,
        "tied": full.mean(axis=0),
        "diag": np.diagonal(full, axis1=1, axis2=2),
        "spherical": np.diagonal(full, axis1=1, axis2=2).mean(axis=1),
    }[kind]
    precisions = np.linalg.inv(values) if kind in ("full", "tied") else 1 / values
    return {
        "weights_init": np.array([len(g) / len(x) for g in groups]),
        "means_init": np.stack([g.mean(axis=0) for g in groups]),
        "precisions_init": precisions,
    }


SETTINGS: dict[str, Any] = {"max_iter": ITERATIONS, "tol": 0.0}


@cache
def theirs(name: str, kind: str, reg_covar: float = 1e-6) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = Theirs(NAMES[name], covariance_type=kind, reg_covar=reg_covar, **start(name, kind), **SETTINGS)
        return model.fit(_DATA[name])


def assert_same_model(model: Any, expected: Any, x: Any) -> None:
    assert model.n_iter_ == expected.n_iter_ == ITERATIONS
    np.testing.assert_allclose(model.lower_bound_, expected.lower_bound_, rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.lower_bounds_, expected.lower_bounds_, rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.score(x), expected.score(np.asarray(x)), rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.weights_, expected.weights_, rtol=0, atol=1e-8)
    np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-8, atol=1e-8)
    error = np.linalg.norm(model.covariances_ - expected.covariances_)
    assert error <= 1e-8 * np.linalg.norm(expected.covariances_)
    assert model.converged_ == expected.converged_


def cut(n: int, edges: set[int]) -> tuple[int, ...]:
    """Chunk sizes between some edges; edges that fall together leave empty chunks out."""
    bounds = [0, *sorted(e for e in edges if 0 < e < n), n]
    return tuple(hi - lo for lo, hi in itertools.pairwise(bounds))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=4)  # of each of twelve
@given(
    edges=st.sets(st.integers(1, 271), max_size=12),
    columns=st.booleans(),
    empty=st.integers(0, 13),
)
def test_same_start_same_numbers_for_any_chunks(
    name: str, kind: Any, edges: set[int], columns: bool, empty: int
) -> None:
    x = _DATA[name]
    rows = list(cut(len(x), edges))
    rows.insert(min(empty, len(rows)), 0)
    width = x.shape[1]
    chunks = (tuple(rows), (1, width - 1) if columns else (width,))
    model = GaussianMixture(NAMES[name], covariance_type=kind, **start(name, kind), **SETTINGS)
    chunked = da.from_array(x, chunks=chunks)
    assert_same_model(model.fit(chunked), theirs(name, kind), chunked)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block_size", [512, "64 MiB"])
def test_same_numbers_from_memory(name: str, kind: Any, block_size: int | str) -> None:
    x = _DATA[name]
    model = GaussianMixture(
        NAMES[name], covariance_type=kind, block_size=block_size, **start(name, kind), **SETTINGS
    )
    assert_same_model(model.fit(x), theirs(name, kind), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_default_start_is_scikit_learns(name: str, kind: str) -> None:
    # All rows are in the seeding sample: the same seed, the same k-means, the same model.
    x = _DATA[name]
    settings: dict[str, Any] = {"covariance_type": kind, "random_state": 3, **SETTINGS}
    expected = Theirs(NAMES[name], **settings).fit(x)
    assert_same_model(GaussianMixture(NAMES[name], **settings).fit(x), expected, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["weights_init", "means_init", "precisions_init"])
def test_a_part_of_the_start_takes_the_place_of_the_seeds(kind: str, part: str) -> None:
    x, given_part = _DATA["iris"], start("iris", kind)[part]
    settings: dict[str, Any] = {"covariance_type": kind, "random_state": 0, part: given_part}
    model = GaussianMixture(3, max_iter=0, **settings).fit(x)
    found = {
        "weights_init": model.weights_,
        "means_init": model.means_,
        "precisions_init": model.precisions_,
    }
    np.testing.assert_allclose(found[part], given_part, rtol=1e-10)
    if part != "means_init":  # rows go to the nearest mean given, scikit-learn keeps its k-means
        settings |= SETTINGS
        assert_same_model(GaussianMixture(3, **settings).fit(x), Theirs(3, **settings).fit(x), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_queries(name: str, kind: str) -> None:
    x, expected = _DATA[name], theirs(name, kind)
    model = GaussianMixture.from_sklearn(expected)
    np.testing.assert_array_equal(model.predict(x), expected.predict(x))
    # Probabilities and log-densities carry eps times the size of the terms of the exponents.
    np.testing.assert_allclose(model.predict_proba(x), expected.predict_proba(x), rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.score_samples(x), expected.score_samples(x), rtol=0, atol=1e-9)
    np.testing.assert_allclose(model.score(x), expected.score(x), rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.aic(x), expected.aic(x), rtol=1e-12)
    np.testing.assert_allclose(model.bic(x), expected.bic(x), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [1e8, -3e5])
@pytest.mark.parametrize("block_size", [256, "64 MiB"])
def test_data_far_from_the_origin(kind: Any, offset: float, block_size: int | str, reference: Any) -> None:
    # Rows at 1e8 with unit spread: a difference of squares would lose all 16 digits of the covariance.
    steps, k, d = 20, 2, 3
    random = np.random.default_rng(5)
    x = np.concatenate([random.normal(size=(60, d)), random.normal([2, 3, 1], [1, 2, 0.5], (80, d))])
    x += offset
    means = x[[0, -1]]
    one = {"full": np.stack([np.eye(d)] * k), "tied": np.eye(d), "diag": np.ones((k, d)), "spherical": np.ones(k)}
    weight = random.choice([0.5, 1.0, 2.0], len(x))
    model = GaussianMixture(
        k,
        covariance_type=kind,
        weights_init=[0.5, 0.5],
        means_init=means,
        precisions_init=one[kind],
        reg_covar=0,
        tol=0,
        max_iter=steps,
        block_size=block_size,
    ).fit(x, sample_weight=weight)
    parameters = (np.array([0.5, 0.5]), means, one[kind])
    weights, mu, cov, trace = reference.em(x, parameters, kind, steps, weight)
    # A mean is stored to eps·|offset|, here 1e-8 of the spread; each of 20 steps adds as much again and
    # passes on what it got (EM contracts), so a few tens of that. Nothing grows with the square.
    atol = 20 * EPS * abs(offset) + 1e-12
    np.testing.assert_allclose(model.means_, mu.astype(float), rtol=0, atol=atol)
    np.testing.assert_allclose(model.weights_, weights.astype(float), rtol=0, atol=atol)
    np.testing.assert_allclose(model.covariances_, cov.astype(float), rtol=0, atol=10 * atol)
    np.testing.assert_allclose(model.lower_bounds_, np.array(trace, float), rtol=0, atol=atol)
    # The first E-step starts from means that are exact.
    np.testing.assert_allclose(model.lower_bounds_[0], float(trace[0]), rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_moving_the_data_moves_the_means_alone(kind: Any) -> None:
    # Whole numbers in units of 2^-12 stay exact when moved by 2^27 (about 1.3e8), seeds included.
    x = np.round(np.random.default_rng(0).normal(size=(300, 3)) * 4096) / 4096
    x[100:] += 4
    offset = 2.0**27
    near, far = (
        GaussianMixture(2, covariance_type=kind, tol=0, max_iter=10, random_state=0).fit(x + o)
        for o in (0.0, offset)
    )
    atol = 20 * EPS * offset
    np.testing.assert_allclose(far.means_ - offset, near.means_, rtol=0, atol=atol)
    np.testing.assert_allclose(far.covariances_, near.covariances_, rtol=0, atol=10 * atol)
    np.testing.assert_allclose(far.lower_bounds_, near.lower_bounds_, rtol=0, atol=atol)
