"""Each kind of covariance against dense matrices: one test for all that a kind does."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture as Theirs

from daskgmm.errors import CollapseError
from daskgmm.model.kernels.compiling import TILE
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import FULL, STRUCTURES
from daskgmm.model.update import Regularised
from tests import strategies, structures
from tests.structures import EPS, KINDS, draw_covariances, draw_mixture, draw_rows, matrices, parameters

K, D = 3, 4
every_kind = pytest.mark.parametrize("kind", KINDS)


def log_density_error(mixture: Mixture, x: Any, exponent: float) -> float:
    """Of one row, at most: an exponent e is off by a few d·eps·e, times the condition number of the factors (about
    30). In float32, each product is off by a few eps; d + 2 of them, amplified by correlation, reach a log-density
    that is quadratic in the distance. None of it depends on where the data lie.
    """
    d, covariance = mixture.n_features, mixture.covariance
    if x.dtype == np.float64:
        return 32 * 4 * d * EPS * (1 + exponent)
    far = float(np.abs(x.astype(np.float64)[:, None] - mixture.means).max() ** 2)
    return 4 * (d + 2) * 2.0**-24 * covariance.amplification * far * float(covariance.precisions.max()) * d


def check_structure(mixture: Mixture, x: Any, weight: Any, reference: Any) -> None:
    """Answers, expectation and M-step are those of dense matrices; ``weight`` > 0."""
    kind, (k, d) = mixture.covariance.structure.name, mixture.means.shape
    exact = x.astype(np.float64)
    joint = reference.joint(exact, *parameters(mixture), kind)
    log_density, resp = reference.expectation(exact, *parameters(mixture), kind)
    off, r = log_density_error(mixture, x, float(abs(joint).max())), reach(exact, mixture.means)
    check_answers(mixture, x, joint, log_density, resp, off)

    s = mixture.expectation(x, weight)
    total, share = weight.sum(), weight[:, None] * resp
    # A sum over n rows: float32's rounding within a tile, and float64's over all.
    unit = (off + (len(x) * 4 * EPS if x.dtype == np.float64 else min(len(x), 2 * TILE) * 2.0**-24)) * total
    expected = reference.statistics(exact, share, s.reference, kind)
    bounds = (unit, unit * r, unit * r**2)
    for found, wanted, atol in zip((s.weight, s.shift, s.scatter), expected, bounds, strict=True):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, wanted.astype(float), rtol=0, atol=atol)
    np.testing.assert_allclose(s.log_likelihood, float(weight @ log_density), rtol=0, atol=unit)
    assert (s.total_weight, s.n_rows) == (total, len(x))
    np.testing.assert_allclose(s.reference, mixture.means, rtol=0 if x.dtype == np.float64 else 2.0**-24)

    updated = Regularised(1e-3)(mixture, s)
    weights, means, values = reference.maximise(exact, share, kind, 1e-3)
    values = matrices(values, kind, k, d).astype(float)
    # Divided by the weight of the component; means also round to eps·|mean|.
    unit /= total * float(weights.min())
    np.testing.assert_allclose(updated.weights, weights.astype(float), rtol=0, atol=unit)
    np.testing.assert_allclose(updated.means, means.astype(float), rtol=2 * EPS, atol=unit * r)
    found = matrices(updated.covariance.values, kind, k, d)
    np.testing.assert_allclose(found, values, rtol=0, atol=4 * unit * r**2)
    np.testing.assert_allclose(updated.weights.sum(), 1.0, rtol=0, atol=4 * EPS)


def check_answers(mixture: Mixture, x: Any, joint: Any, log_density: Any, resp: Any, off: float) -> None:
    """Densities, responsibilities and labels of rows, where log-densities may be off by ``off``."""
    np.testing.assert_allclose(mixture.score_samples(x), log_density.astype(float), rtol=0, atol=off)
    np.testing.assert_allclose(mixture.responsibilities(x), resp.astype(float), rtol=0, atol=off)
    chosen = np.take_along_axis(joint, mixture.labels(x)[:, None], axis=1)[:, 0]
    assert np.all(chosen >= joint.max(axis=1) - 2 * off)


def reach(*points: Any) -> float:
    """The longest distance between any of the points."""
    return float(np.linalg.norm(np.ptp(np.concatenate(points), axis=0)))


@every_kind
@pytest.mark.parametrize("dtype", ["f8", "f4"])
@given(data=st.data())
def test_each_kind_is_its_dense_reference(kind: str, dtype: str, data: st.DataObject, reference: Any) -> None:
    mixture = data.draw(strategies.mixtures(st.just(kind)))
    (k, d), n = mixture.means.shape, data.draw(st.integers(1, 300))
    x = draw_rows(mixture, n, data.draw(strategies.seeds)).astype(dtype)
    weight = np.random.default_rng(n).choice([0.5, 1.0, 3.0], size=n)
    check_structure(mixture, x, weight, reference)
    assert mixture.n_parameters == structures.n_parameters(kind, k, d)
    for j, covariance in enumerate(matrices(mixture.covariance.values, kind, k, d)):
        # The rows of the unit matrix come out as the matrix A of x = z A, and the covariance is A'A.
        a = mixture.covariance.colour(np.eye(d), j)
        np.testing.assert_allclose(a.T @ a, covariance, rtol=0, atol=1e3 * EPS)


@every_kind
def test_the_dense_reference_is_scipys(kind: str) -> None:
    mixture = draw_mixture(kind, K, D)
    x = draw_rows(mixture)
    pairs = zip(mixture.means, matrices(mixture.covariance.values, kind, K, D), strict=True)
    theirs = np.stack([multivariate_normal(m, c).logpdf(x) for m, c in pairs], axis=1) + np.log(mixture.weights)
    np.testing.assert_allclose(structures.joint(x, *parameters(mixture), kind).astype(float), theirs, rtol=1e-12)


@every_kind
@pytest.mark.parametrize(("k", "d"), [(1, 1), (3, 4), (5, 2)])
def test_shapes_and_numbers_are_scikit_learns(kind: str, k: int, d: int) -> None:
    structure = STRUCTURES[kind]
    theirs = Theirs(k, covariance_type=kind).fit(np.random.default_rng(0).normal(size=(50, d)))
    assert structure.shape(k, d) == theirs.covariances_.shape == KINDS[kind].shape(k, d)
    assert structure.n_parameters(k, d) == KINDS[kind].n_parameters(k, d)
    assert structures.n_parameters(kind, k, d) == theirs._n_parameters()
    stored = structure.stored(theirs.covariances_, k, d)
    assert len(stored) == (1 if KINDS[kind].shared else k)
    np.testing.assert_array_equal(structure.shown(stored, k, d), theirs.covariances_)


def held(kind: str, k: int = K, d: int = D, seed: int = 0) -> Any:
    """Values as the package holds them."""
    return STRUCTURES[kind].stored(draw_covariances(kind, k, d, seed), k, d)


@every_kind
def test_spread_is_the_scatter_of_weighted_covariances(kind: str) -> None:
    weight, values = np.array([0.5, 0.0, 3.0]), held(kind)
    expected = KINDS[kind].pick(weight[:, None, None] * matrices(values, kind, K, D))
    np.testing.assert_allclose(STRUCTURES[kind].spread(values, weight), expected, rtol=4 * EPS, atol=0)


def gathered(kind: str, weight: Any, seed: int = 2) -> Statistics:
    """Statistics about their own means whose covariances, given weights, are those of `held`."""
    scatter = STRUCTURES[kind].spread(held(kind, seed=seed), weight)
    total = float(weight.sum())
    return Statistics(
        STRUCTURES[kind], np.zeros((K, D)), weight, np.zeros((K, D)), scatter, 0.0, total, n_rows=int(total)
    )


@every_kind
def test_the_ridge_is_added_to_the_diagonal_of_living_components(kind: str) -> None:
    previous = held(kind, seed=1)
    found = STRUCTURES[kind].fit(gathered(kind, np.array([2.0, 0.0, 4.0])), previous, 0.25)
    full, own = (matrices(values, kind, K, D) for values in (found.values, held(kind, seed=2)))
    for j in (0, 2):
        np.testing.assert_allclose(full[j], own[j] + 0.25 * np.eye(D), rtol=2 * EPS)
    if kind != "tied":  # a shared covariance has rows of other components
        np.testing.assert_array_equal(full[1], matrices(previous, kind, K, D)[1])


@every_kind
def test_covariances_do_not_depend_on_the_unit_of_weights(kind: str) -> None:
    a, b = (gathered(kind, scale * np.array([2.0, 1.0, 4.0])) for scale in (1.0, 2.0**-60))
    for values in (a, b):
        found = STRUCTURES[kind].fit(values, held(kind, seed=1), 0.0).values
        np.testing.assert_allclose(found, held(kind, seed=2), rtol=4 * EPS, atol=4 * EPS)


def fitted(x: Any) -> None:
    """The M-step of one component of full covariance, with nothing added."""
    s = moments(FULL, x)
    FULL.fit(s.about(s.means), s.scatter, 0.0)


@given(
    d=st.integers(2, 10),
    rows=st.integers(2, 10),
    seed=strategies.seeds,
    offset=st.sampled_from([0.0, 1e4]),
)
@settings(max_examples=200)
def test_as_many_rows_as_features_are_too_few(d: int, rows: int, seed: int, offset: float) -> None:
    # n rows span n - 1 directions. Rounding alone gives the covariance its missing rank, and the smallest
    # pivot may be far above eps where a leading block is badly conditioned.
    x = np.random.default_rng(seed).normal(size=(min(rows, d), d)) + offset
    with pytest.raises(CollapseError):
        fitted(x)


@given(d=st.integers(2, 10), seed=strategies.seeds)
def test_a_feature_that_others_determine_is_a_collapse(d: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(50, d))
    fitted(x)
    x[:, random.integers(d)] = x[:, 1:].sum(axis=1) - x[:, 0]
    x[:, 0] = x[:, -1]
    with pytest.raises(CollapseError):
        fitted(x)
