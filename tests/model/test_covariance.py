"""Covariances with the factors of their precisions, and when they count as collapsed."""

import pickle
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

from daskgmm.errors import CollapseError, DataError
from daskgmm.model.covariance import Covariance
from daskgmm.model.structure import FULL, STRUCTURES
from tests.strategies import kinds, seeds
from tests.structures import EPS, KINDS, draw_covariances, matrices

K, D = 3, 4
every_kind = pytest.mark.parametrize("kind", KINDS)


def covariance(kind: str, values: Any, k: int = K, d: int = D) -> Covariance:
    """Of covariances in scikit-learn's shape."""
    structure = STRUCTURES[kind]
    return structure.form.of(structure, structure.stored(values, k, d))


@given(
    kind=kinds,
    k=st.integers(1, 4),
    d=st.integers(1, 6),
    seed=seeds,
    scale=st.sampled_from([1e-200, 1e-12, 1.0, 1e12, 1e200]),
)
def test_factors_belong_to_the_covariances(kind: str, k: int, d: int, seed: int, scale: float) -> None:
    values = draw_covariances(kind, k, d, seed, scale)
    c, full = covariance(kind, values, k, d), matrices(values, kind, k, d)
    precisions = matrices(c.precisions, kind, k, d)
    # Backward stable: the residual is eps times the condition number, here below 1e3, times some d².
    np.testing.assert_allclose(precisions @ full, np.broadcast_to(np.eye(d), full.shape), atol=1e3 * d**2 * EPS)
    log_det = np.broadcast_to(c.half_log_det(d), k)
    expected = -0.5 * np.linalg.slogdet(full / scale)[1] - 0.5 * d * np.log(scale)
    np.testing.assert_allclose(log_det, expected, rtol=1e-12, atol=1e-12)
    assert c.values.shape == c.factor.shape
    if kind in ("full", "tied"):
        np.testing.assert_array_equal(c.factor, np.triu(c.factor))


@every_kind
def test_precisions_there_and_back(kind: str) -> None:
    c = covariance(kind, draw_covariances(kind, K, D))
    again = c.structure.form.from_precisions(c.structure, c.precisions)
    np.testing.assert_allclose(again.values, c.values, rtol=0, atol=1e4 * EPS)
    np.testing.assert_allclose(again.precisions, c.precisions, rtol=0, atol=1e4 * EPS)
    np.testing.assert_allclose(abs(again.factor), abs(c.factor), rtol=0, atol=1e4 * EPS)


@every_kind
def test_factor_is_scikit_learns(kind: str) -> None:
    values = draw_covariances(kind, K, D)
    found = STRUCTURES[kind].shown(covariance(kind, values).factor, K, D)
    np.testing.assert_allclose(found, _compute_precision_cholesky(values, kind), rtol=0, atol=1e3 * EPS)


@every_kind
def test_diagonals_are_those_of_the_matrices(kind: str) -> None:
    values = draw_covariances(kind, K, D)
    c = covariance(kind, values)
    diagonals = np.diagonal(matrices(values, kind, K, D), axis1=1, axis2=2)
    np.testing.assert_array_equal(np.broadcast_to(c.diagonals(c.values), (K, D)), diagonals)


@every_kind
def test_taken_components_keep_what_is_theirs(kind: str) -> None:
    c, order = covariance(kind, draw_covariances(kind, K, D)), np.array([2, 0, 0])
    taken = c.take(order)
    for name in ("values", "factor"):
        whole, some = (matrices(getattr(one, name), kind, K, D) for one in (c, taken))
        np.testing.assert_array_equal(some, whole[order])


@every_kind
def test_amplification_bounds_what_correlated_features_cancel(kind: str) -> None:
    """A standardised value of deviations of one σ in each feature is at most as large; 1 without correlation."""
    values = draw_covariances(kind, K, D)
    c, full = covariance(kind, values), matrices(values, kind, K, D)
    factor = matrices(c.factor, kind, K, D)
    largest = max(float((abs(f.T) @ np.sqrt(np.diag(m))).max()) for f, m in zip(factor, full, strict=True))
    np.testing.assert_allclose(c.amplification, largest, rtol=16 * EPS)
    assert (c.amplification > 1.01) == (kind in ("full", "tied"))
    assert c.allows_single


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@every_kind
def test_squares_that_float32_cannot_hold_forbid_it(kind: str, scale: float) -> None:
    assert not covariance(kind, draw_covariances(kind, K, D, scale=scale)).allows_single


@every_kind
def test_collapse_names_the_component(kind: str) -> None:
    values = draw_covariances(kind, K, D).copy()
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
        covariance(kind, values)
    assert caught.value.component == place
    assert f"covariance of component {place} " in str(caught.value)
    assert isinstance(caught.value, DataError)
    assert isinstance(caught.value, ValueError)


@every_kind
def test_nan_is_no_covariance(kind: str) -> None:
    with pytest.raises(CollapseError):
        covariance(kind, np.full_like(draw_covariances(kind, K, D), np.nan))


@given(d=st.integers(2, 8), seed=seeds, power=st.integers(1, 5))
def test_units_of_the_features_do_not_matter(d: int, seed: int, power: int) -> None:
    # Badly scaled is not singular: the factor takes the units with it.
    values = draw_covariances("full", 1, d, seed)
    units = 10.0 ** (power * np.arange(d))
    c, plain = (covariance("full", v, 1, d) for v in (values * np.outer(units, units), values))
    np.testing.assert_allclose(c.factor * units[:, None], plain.factor, rtol=1e-9, atol=1e-12)


def test_small_is_not_singular() -> None:
    tiny = 1e-300 * np.eye(2)[None]
    np.testing.assert_allclose(covariance("full", tiny, 1, 2).precisions, 1e300 * np.eye(2)[None])


def test_what_is_singular_within_the_rounding_of_a_scatter_may_be_taken_as_given() -> None:
    """As where a ridge was added: then it is known to be what it is."""
    values = np.ones((1, 2, 2)) + 4 * EPS * np.eye(2)
    with pytest.raises(CollapseError):
        FULL.form.of(FULL, values)
    assert np.isfinite(FULL.form.of(FULL, values, ridge=np.inf).factor).all()


@pytest.mark.parametrize(("share", "sound"), [(0.75, False), (1.5, True)])
def test_the_rounding_of_a_scatter_is_so_much(share: float, sound: bool) -> None:
    """32·d·eps of the smallest eigenvalue of correlations; of a ridge sqrt(d)·eps, as it mostly is."""
    for eigenvalue, ridge in ((share * 32 * 2 * EPS, 0.0), (EPS, share * np.sqrt(2) * EPS)):
        values = np.array([[[1.0, 1 - eigenvalue], [1 - eigenvalue, 1.0]]])
        with nullcontext() if sound else pytest.raises(CollapseError):
            FULL.form.of(FULL, values, ridge)


@pytest.mark.parametrize(("share", "sound"), [(0.75, True), (1.5, False)])
def test_a_factor_that_is_given_may_be_off_by_what_making_it_rounds(share: float, sound: bool) -> None:
    """64·(d + 2)·eps, where features do not correlate."""
    factor = np.sqrt(1 + share * 64 * (3 + 2) * EPS) * np.eye(3)
    assert FULL.form(FULL, np.eye(3)[None], factor[None]).has_its_factor == sound


@pytest.mark.parametrize("unit", [1e-24, 1.0, 1e24])
def test_symmetry_does_not_depend_on_units(unit: float) -> None:
    symmetric, not_so = np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([[1.0, 0.5], [-0.5, 1.0]])
    assert FULL.form.is_valid(unit * symmetric[None])
    assert not FULL.form.is_valid(unit * not_so[None])


@pytest.mark.parametrize("feature", [1, 2])
def test_a_feature_that_follows_from_others_is_named_with_a_remedy(feature: int) -> None:
    """As long as the ridge on the diagonal is less than rounding: then luck would decide."""
    variances = np.array([1.0, 1e16, 1e16])
    values = np.diag(variances)
    values[1, 2] = values[2, 1] = 1e16
    values[feature, feature] *= 1 + 4 * EPS  # rounding may have left this
    told = "component 0 .* feature [12] follows from others .* raise reg_covar to 4e[+]03"
    for ridge in (0.0, 1e-6, 1.0):
        with pytest.raises(CollapseError, match=told):
            FULL.form.of(FULL, values[None], ridge)
    ridged = values + 4e3 * np.eye(3)
    assert np.isfinite(FULL.form.of(FULL, ridged[None], 4e3).factor).all()


def test_a_collapse_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(CollapseError("why", 3)))
    assert (str(error), error.component) == ("why", 3)
