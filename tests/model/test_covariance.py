"""Covariance structures: factors, collapse, and what each does with the same scatter."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture as Theirs

from daskgmm.errors import CollapseError, DataError
from daskgmm.model.covariance import STRUCTURES, Full
from daskgmm.model.mixture import moments

EPS = np.finfo(np.float64).eps
K, D = 3, 4


def spread(kind: str, k: int, d: int, seed: int = 0, scale: float = 1.0) -> Any:
    """Covariances of moderate condition, in the structure's own shape."""
    random = np.random.default_rng(seed)
    a = random.normal(size=(k, d, d))
    full = scale * (a @ np.swapaxes(a, 1, 2) / d + 0.5 * np.eye(d))
    return {
        "full": full,
        "tied": full[0],
        "diag": np.diagonal(full, axis1=1, axis2=2).copy(),
        "spherical": full[:, 0, 0].copy(),
    }[kind]


def matrices(kind: str, values: Any, k: int, d: int) -> Any:
    if kind == "full":
        return values
    if kind == "tied":
        return np.broadcast_to(values, (k, d, d))
    return np.stack([np.diag(np.broadcast_to(v, d)) for v in values])


@given(
    kind=st.sampled_from(sorted(STRUCTURES)),
    k=st.integers(1, 4),
    d=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-200, 1e-12, 1.0, 1e12, 1e200]),
)
def test_factors_belong_to_the_covariances(kind: str, k: int, d: int, seed: int, scale: float) -> None:
    values = spread(kind, k, d, seed, scale)
    c = STRUCTURES[kind].of(values)
    full = matrices(kind, values, k, d)
    precisions = matrices(kind, c.precisions, k, d)
    # Backward stable: the residual is eps times the condition number, here below 1e3, times some d².
    np.testing.assert_allclose(precisions @ full, np.broadcast_to(np.eye(d), full.shape), atol=1e3 * d**2 * EPS)
    log_det = np.broadcast_to(c.half_log_det(d), k)
    expected = -0.5 * np.linalg.slogdet(full / scale)[1] - 0.5 * d * np.log(scale)
    np.testing.assert_allclose(log_det, expected, rtol=1e-12, atol=1e-12)
    assert c.values.shape == c.factor.shape == STRUCTURES[kind].shape(k, d)
    if kind in ("full", "tied"):
        np.testing.assert_array_equal(c.factor, np.triu(c.factor))


@pytest.mark.parametrize("kind", STRUCTURES)
def test_precisions_there_and_back(kind: str) -> None:
    structure = STRUCTURES[kind]
    values = spread(kind, K, D)
    again = structure.from_precisions(structure.of(values).precisions)
    np.testing.assert_allclose(again.values, values, rtol=0, atol=1e4 * EPS)
    np.testing.assert_allclose(again.precisions, structure.of(values).precisions, rtol=0, atol=1e4 * EPS)
    np.testing.assert_allclose(abs(again.factor), abs(structure.of(values).factor), rtol=0, atol=1e4 * EPS)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_factor_is_scikit_learns(kind: str) -> None:
    from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

    values = spread(kind, K, D)
    theirs = _compute_precision_cholesky(values, kind)
    np.testing.assert_allclose(STRUCTURES[kind].of(values).factor, theirs, rtol=0, atol=1e3 * EPS)


@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize(("k", "d"), [(1, 1), (3, 4), (5, 2)])
def test_number_of_parameters_is_scikit_learns(kind: str, k: int, d: int) -> None:
    theirs = Theirs(k, covariance_type=kind)
    theirs.means_ = np.zeros((k, d))
    assert STRUCTURES[kind].n_parameters(k, d) + k * d + k - 1 == theirs._n_parameters()


@pytest.mark.parametrize("kind", STRUCTURES)
def test_colour_gives_the_covariance(kind: str) -> None:
    values = spread(kind, K, D)
    c, full = STRUCTURES[kind].of(values), matrices(kind, values, K, D)
    for j in range(K):
        # The rows of the unit matrix come out as the matrix A of x = z A, and the covariance is A'A.
        a = c.colour(np.eye(D), j)
        np.testing.assert_allclose(a.T @ a, full[j], rtol=0, atol=1e3 * EPS)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_variances_are_the_diagonals(kind: str) -> None:
    values = spread(kind, K, D)
    diagonals = np.diagonal(matrices(kind, values, K, D), axis1=1, axis2=2)
    np.testing.assert_array_equal(STRUCTURES[kind].variances(values, K, D), diagonals)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_regularised_adds_to_the_diagonal_of_living_components(kind: str) -> None:
    own, new = spread(kind, K, D, seed=1), spread(kind, K, D, seed=2)
    alive = np.array([True, False, True])
    found = STRUCTURES[kind].of(own).regularised(new, alive, 0.25)
    full = matrices(kind, found, K, D)
    np.testing.assert_array_equal(full[0], matrices(kind, new, K, D)[0] + 0.25 * np.eye(D))
    if kind != "tied":  # a shared covariance has rows of other components
        np.testing.assert_array_equal(full[1], matrices(kind, own, K, D)[1])


def test_a_component_without_weight_has_no_scatter_to_divide() -> None:
    for kind in ("full", "diag", "spherical"):
        shares = STRUCTURES[kind].per_weight(spread(kind, 2, 2) * 0, np.array([0.0, 2.0]))
        assert np.all(shares == 0)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_collapse_names_the_component(kind: str) -> None:
    values = spread(kind, K, D)
    place = 0 if kind == "tied" else 1
    if kind == "full":
        values[1] = np.ones((D, D))  # of rank one
    elif kind == "tied":
        values = np.ones((D, D))
    elif kind == "diag":
        values[1, 2] = 0.0
    else:
        values[1] = -1.0
    with pytest.raises(CollapseError, match="ill-defined empirical covariance") as caught:
        STRUCTURES[kind].of(values)
    assert caught.value.component == place
    assert f"covariance of component {place} " in str(caught.value)
    assert isinstance(caught.value, DataError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_nan_is_no_covariance(kind: str) -> None:
    values = spread(kind, K, D)
    values[...] = np.nan
    with pytest.raises(CollapseError):
        STRUCTURES[kind].of(values)


@given(
    d=st.integers(2, 10),
    rows=st.integers(2, 10),
    seed=st.integers(0, 2**32 - 1),
    offset=st.sampled_from([0.0, 1e4]),
)
@settings(max_examples=200)
def test_as_many_rows_as_features_are_too_few(d: int, rows: int, seed: int, offset: float) -> None:
    # n rows span n - 1 directions. Rounding alone gives the covariance its missing rank, and the smallest
    # pivot may be far above eps where a leading block is badly conditioned.
    x = np.random.default_rng(seed).normal(size=(min(rows, d), d)) + offset
    s = moments(Full, x)
    with pytest.raises(CollapseError):
        Full.of(Full.per_weight(s.about(s.means).scatter, s.weight))


@given(d=st.integers(2, 10), seed=st.integers(0, 2**32 - 1))
def test_a_feature_that_others_determine_is_a_collapse(d: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(50, d))
    x[:, random.integers(d)] = x[:, 1:].sum(axis=1) - x[:, 0]
    x[:, 0] = x[:, -1]
    s = moments(Full, x)
    with pytest.raises(CollapseError):
        Full.of(Full.per_weight(s.about(s.means).scatter, s.weight))


@given(d=st.integers(2, 8), seed=st.integers(0, 2**32 - 1), power=st.integers(1, 5))
def test_units_of_the_features_do_not_matter(d: int, seed: int, power: int) -> None:
    # Badly scaled is not singular: the factor takes the units with it.
    values = spread("full", 1, d, seed)
    units = 10.0 ** (power * np.arange(d))
    c = Full.of(values * np.outer(units, units))
    np.testing.assert_allclose(c.factor * units[:, None], Full.of(values).factor, rtol=1e-9, atol=1e-12)


def test_small_is_not_singular() -> None:
    tiny = 1e-300 * np.eye(2)[None]
    np.testing.assert_allclose(STRUCTURES["full"].of(tiny).precisions, 1e300 * np.eye(2)[None])


def test_a_collapse_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(CollapseError("why", 3)))
    assert (str(error), error.component) == ("why", 3)
