"""Rows far away: labels of exact arithmetic, responsibilities that sum to 1, log-densities as they are."""

from fractions import Fraction
from typing import Any

import dask.array as da
import numpy as np
import pytest

from daskgmm import DataError, GaussianMixture
from daskgmm.model import far, kernels
from daskgmm.model.kernels.compiling import TILE
from daskgmm.model.mixture import ANSWERS, Mixture
from daskgmm.model.structure import DIAGONAL, FULL, SPHERICAL, TIED, Structure
from tests.structures import EPS, KINDS, draw_mixture, draw_rows

every_kind = pytest.mark.parametrize("kind", KINDS)
FILLS = [1e20, 9.96921e36, -3.4e38]  # what stands for missing values; netCDF's for float32 is the second
SCALES = [*FILLS, 1e8, 1e16, 1e60, 1e153, 1e155, -1e200, 1e300, 1.7e308]


def joint(mixture: Mixture, row: Any) -> list[Any]:
    """Log of weight times density of each component as fractions, exact but for the logarithms."""
    d, k = mixture.n_features, mixture.n_components
    norm = np.broadcast_to(mixture.covariance.half_log_det(d), k) - 0.5 * d * np.log(2 * np.pi)
    found = []
    for j in range(k):
        factor = mixture.covariance.factor[min(j, len(mixture.covariance.factor) - 1)]
        square = np.diag(np.broadcast_to(factor, d)) if factor.ndim == 1 else factor
        apart = [Fraction(float(a)) - Fraction(float(b)) for a, b in zip(row, mixture.means[j], strict=True)]
        z = [sum(a * Fraction(float(f)) for a, f in zip(apart, column, strict=True)) for column in square.T]
        found.append(Fraction(float(norm[j] + np.log(mixture.weights[j]))) - sum(v * v for v in z) / 2)
    return found


def number(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf


def exact(mixture: Mixture, x: Any) -> tuple[list[int], list[float]]:
    """Labels and log-densities."""
    labels, densities = [], []
    for row in x:
        each = joint(mixture, row)
        best = max(range(len(each)), key=lambda j: (each[j], -j))
        labels.append(best)
        densities.append(number(each[best]) + np.log(sum(np.exp(number(other - each[best])) for other in each)))
    return labels, densities


def check(mixture: Mixture, x: Any) -> None:
    """Against exact arithmetic, of float32 rows in the precision of float32."""
    (labels, finite), (density, _), (resp, _) = (mixture.answer(x, question) for question in ANSWERS)
    assert finite
    best, wanted = exact(mixture, x)
    np.testing.assert_array_equal(labels, best)
    np.testing.assert_array_equal(resp.argmax(axis=1), best)
    off = 1e-6 if x.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(resp.sum(axis=1), 1, rtol=off)
    np.testing.assert_allclose(density, wanted, rtol=off, atol=100 * off)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_row_is_too_far_where_its_log_density_is_off_by_a_hundredth(dtype: str) -> None:
    normal = Mixture(np.ones(1), np.zeros((1, 1)), DIAGONAL.form.of(DIAGONAL, np.ones((1, 1))))
    for rounding, sound in ((0.008, True), (0.0125, False)):
        x = np.array([[np.sqrt(2 * rounding / np.finfo(dtype).eps)]], dtype)
        labels, density, resp = np.empty(1, np.int64), np.empty(1), np.empty((1, 1))
        assert kernels.posterior(x, normal.model_for(x, None), labels, density, resp) == sound


@every_kind
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("d", [1, 3, 30])
def test_rows_of_any_size(kind: str, d: int, dtype: str) -> None:
    mixture, random = draw_mixture(kind, d=d), np.random.default_rng(d)
    scales = np.array([s for s in SCALES if dtype == "f8" or abs(s) < 3.5e38])
    signs = random.choice([1, 1, -0.5, 0.25], size=(len(scales), d))
    near = draw_rows(mixture, 5)
    for x in (np.repeat(scales[:, None], d, axis=1), scales[:, None] * signs):
        check(mixture, np.concatenate([near, x]).astype(dtype))


@pytest.mark.parametrize("structure", [FULL, TIED, DIAGONAL, SPHERICAL], ids=lambda s: s.name)
@pytest.mark.parametrize(("means", "size"), [(1e200, 1e-3), (1e-200, 1.0), (1.0, 1e-140), (1.0, 1e140)])
def test_means_and_covariances_of_any_size(structure: Structure, means: float, size: float) -> None:
    """Some components share their covariance, one weighs nothing, and two differ by their weights alone."""
    values = structure.stored(size * np.ones(1) * draw_mixture(structure.name, k=5, d=2).covariance.values, 5, 2)
    if not structure.shared:
        values = values[[0, 1, 0, 0, 1]]
    places = means * np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [2.0, 2.0], [2.0, 3.0]])
    mixture = Mixture(np.array([0.2, 0.2, 0.1, 0.5, 0.0]), places, structure.form.of(structure, values, False))
    x = np.array([[s, s / 2] for s in SCALES] + [[s / 2, s] for s in SCALES] + [[0.0, 0.0]])
    labels, density, resp = far.answers(mixture, x)
    live = Mixture(mixture.weights[:4], places[:4], mixture.covariance.take(np.arange(4)))
    best, wanted = exact(live, x)
    np.testing.assert_array_equal(labels, best)
    np.testing.assert_allclose(resp.sum(axis=1), 1, rtol=4 * EPS)
    np.testing.assert_allclose(density, wanted, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(resp[:, 2], resp[:, 3] / 5, rtol=1e-12)
    assert not resp[:, 4].any()


@every_kind
def test_near_rows_are_answered_alike(kind: str) -> None:
    mixture = draw_mixture(kind, d=5)
    x = draw_rows(mixture, 300)
    for found, question in zip(far.answers(mixture, x), ANSWERS, strict=True):
        np.testing.assert_allclose(found, mixture.answer(x, question)[0], rtol=1e-11, atol=1e-13)


@every_kind
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_only_far_rows_are_looked_at_again(kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = draw_mixture(kind, d=5)
    x = draw_rows(mixture, 3 * TILE).astype(dtype)
    spoiled = x.copy()
    spoiled[[1, TILE, -1]] = [[1e38], [np.nan], [-1e20]]
    told, answers = [], far.answers

    def noted(mixture: Mixture, x: Any) -> Any:
        told.append(x)
        return answers(mixture, x)

    monkeypatch.setattr(far, "answers", noted)
    for question in ANSWERS:
        sound, finite = mixture.answer(x, question)
        assert finite
        assert not told
        found, finite = mixture.answer(spoiled, question)
        assert not finite
        np.testing.assert_array_equal(told.pop(), spoiled[[1, -1]])
        kept = np.delete(np.arange(len(x)), [1, TILE, len(x) - 1])
        np.testing.assert_array_equal(found[kept], sound[kept])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunked", [False, True])
def test_fill_values_in_a_query(kind: Any, chunked: bool) -> None:
    x = np.random.default_rng(0).normal(size=(500, 2)) + 9 * np.random.default_rng(1).integers(2, size=(500, 1))
    model = GaussianMixture(2, covariance_type=kind, random_state=0).fit(x)
    rows = x.astype(np.float32)
    rows[::100] = np.array([*FILLS, 1e30, 1e25], np.float32)[:, None]
    given: Any = da.from_array(rows, chunks=(90, 2)) if chunked else rows
    labels, proba, density = (np.asarray(a) for a in map(lambda q: getattr(model, q)(given), QUERIES))
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(proba.argmax(axis=1), labels)
    assert np.isfinite(density).all()
    assert np.isfinite(model.score(given))
    np.testing.assert_array_equal(labels[::100], exact(model.mixture_, rows[::100])[0])
    rows[3] = np.nan
    with pytest.raises(DataError, match=r"block 0, row\(s\) 3\."):
        np.asarray(model.predict(rows))


QUERIES = ("predict", "predict_proba", "score_samples")
