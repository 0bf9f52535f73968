"""Mixture: its answers for rows of any type, layout and place, and what it draws."""

import pickle
from typing import Any

import numpy as np
import pytest
from scipy.special import entr

from daskgmm.model.kernels import PIECE, layouts
from daskgmm.model.kernels.compiling import TILE
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.structure import FULL, STRUCTURES, TIED
from tests.structures import EPS, KINDS, draw_mixture, draw_rows, matrices, parameters

every_kind = pytest.mark.parametrize("kind", KINDS)


def drawn(kind: str, d: int = 2, n: int = 200) -> tuple[Mixture, Any]:
    """A mixture of three components, and rows about it."""
    mixture = draw_mixture(kind, d=d)
    return mixture, draw_rows(mixture, n)


@pytest.mark.parametrize("n", [0, 1, TILE - 1, TILE, TILE + 1, PIECE, PIECE + 1, 2 * PIECE + 17])
def test_answers_have_one_entry_per_row(n: int) -> None:
    mixture, x = drawn("full", n=n)
    assert mixture.score_samples(x).shape == mixture.labels(x).shape == mixture.entropies(x).shape == (n,)
    assert mixture.responsibilities(x).shape == (n, 3)
    assert mixture.labels(x).dtype == np.int64
    # Tiles leave no seam: each row is answered as if it were alone.
    for i in {0, 1, TILE - 1, TILE, PIECE - 1, PIECE, 2 * PIECE, n - 1} & set(range(n)):
        one = x[i : i + 1]
        np.testing.assert_allclose(mixture.score_samples(one), mixture.score_samples(x)[[i]], rtol=1e-13)
        np.testing.assert_allclose(mixture.entropies(one), mixture.entropies(x)[[i]], rtol=1e-12)
        np.testing.assert_array_equal(mixture.labels(one), mixture.labels(x)[[i]])


@every_kind
def test_entropies_are_those_of_the_responsibilities(kind: str) -> None:
    mixture, x = drawn(kind)
    expected = entr(mixture.responsibilities(x)).sum(axis=1)
    np.testing.assert_allclose(mixture.entropies(x), expected, rtol=0, atol=1e-12)


@every_kind
def test_far_rows_stay_in_log_space(kind: str) -> None:
    mixture, _ = drawn(kind)
    x = np.array([[1e3, -1e3], [1e7, 1e7], [1e150, 0.0]])
    assert np.all(mixture.score_samples(x) < -700)  # exp would be 0
    assert np.all(np.isfinite(mixture.score_samples(x)))
    # Normalised after the peak is taken off: rounding of an exponent of 1e14 must not reach the sum.
    np.testing.assert_allclose(mixture.responsibilities(x).sum(axis=1), 1.0, rtol=0, atol=8 * EPS)
    assert np.all(mixture.entropies(x) <= np.log(3) + 8 * EPS)
    assert np.isfinite(mixture.expectation(x[:1]).log_likelihood)


@every_kind
@pytest.mark.parametrize("dtype", ["f2", ">f8", "i2", "u1", "i8", "?", "g"])
def test_every_dtype_counts_as_its_float64_values(kind: str, dtype: str) -> None:
    mixture, x = drawn(kind)
    stored = (10 * x).astype(np.float64)
    stored = abs(stored).astype(dtype) if np.dtype(dtype).kind in "ub" else stored.astype(dtype)
    same = stored.astype(np.float64)
    a, b = mixture.expectation(stored), mixture.expectation(same)
    # All but float32 are converted to the same float64: not a bit differs.
    for name in ("weight", "shift", "scatter", "log_likelihood", "total_weight", "n_rows"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(mixture.responsibilities(stored), mixture.responsibilities(same))
    assert a.scatter.dtype == np.float64


@every_kind
@pytest.mark.parametrize("dtype", ["f4", ">f4"])
def test_float32_rows_lose_no_more_than_float32_products(kind: str, dtype: str) -> None:
    mixture, x = drawn(kind)
    stored = (10 * x).astype(dtype)
    a, b = mixture.expectation(stored), mixture.expectation(stored.astype(np.float64))
    # Each product is off by a few eps of float32; (d + 2) of them, amplified by correlation, reach a log-density
    # that is quadratic in the distance.
    d = mixture.n_features
    far = np.abs(stored.astype(np.float64)[:, None] - mixture.means).max() ** 2
    far *= mixture.covariance.precisions.max() * d
    unit = 4 * (d + 2) * 2.0**-24 * mixture.covariance.amplification * far * len(x)
    assert abs(a.log_likelihood - b.log_likelihood) <= unit
    np.testing.assert_allclose(a.weight, b.weight, rtol=0, atol=unit)
    assert a.weight.dtype == a.shift.dtype == a.scatter.dtype == np.float64
    assert a.log_likelihood != b.log_likelihood  # float32 products were taken


def test_float32_rows_are_computed_in_float64_where_features_cancel() -> None:
    d = 4
    covariance = np.full((1, d, d), 1.0) + 1e-5 * np.eye(d)  # correlations of 0.99999
    mixture = Mixture(np.ones(1), np.zeros((1, d)), FULL.form.of(FULL, covariance))
    assert mixture.covariance.amplification > 32
    x = np.random.default_rng(0).normal(size=(500, d)).astype(np.float32)
    a, b = mixture.expectation(x), mixture.expectation(x.astype(np.float64))
    np.testing.assert_array_equal(a.scatter, b.scatter)
    assert a.log_likelihood == b.log_likelihood


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_float32_rows_are_summed_in_float64_where_covariances_tell_no_correlation(kind: str) -> None:
    """Such a start has not seen the rows. What it answers of a row needs no sums, and is found in float32."""
    mixture, x = drawn(kind, d=5)
    single, structure = x.astype("f4"), mixture.covariance.structure
    unit = Mixture(
        mixture.weights,
        mixture.means,
        structure.covariance(0 * mixture.covariance.values + np.eye(5), mixture.weights),
    )
    for start, same in ((unit, True), (mixture, False)):
        a, b = start.expectation(single), start.expectation(single.astype("f8"))
        assert (a.log_likelihood == b.log_likelihood) == np.array_equal(a.scatter, b.scatter) == same
    assert not np.array_equal(unit.score_samples(single), unit.score_samples(single.astype("f8")))


@every_kind
@pytest.mark.parametrize("extreme", [1e-7, 1e7])
def test_float32_rows_are_computed_in_float64_where_weights_are_extreme(kind: str, extreme: float) -> None:
    """Products of shares would leave the range of float32."""
    mixture, x = drawn(kind, d=5)
    single, weight = x.astype("f4"), np.ones(len(x))
    for row, same in ((extreme, True), (0.0, False)):  # a weight of zero is not looked at
        weight[7] = row
        a, b = mixture.expectation(single, weight), mixture.expectation(single.astype("f8"), weight)
        assert (a.log_likelihood == b.log_likelihood) == same


@every_kind
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_parameters_in_any_order_are_packed_alike(kind: str, dtype: str) -> None:
    """Code is compiled for each order in memory that comes, and some features of means come column by column."""
    mixture = draw_mixture(kind, 3, 5)
    means = np.asfortranarray(mixture.means)
    for part in mixture.covariance.pack(means, mixture.log_weights, dtype):
        assert np.asarray(part).flags.c_contiguous


@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed", "read-only"])
@every_kind
def test_every_memory_layout_counts_alike(layout: str, kind: str) -> None:
    mixture, x = drawn(kind, d=5, n=9000)
    frozen = x.copy()
    frozen.flags.writeable = False
    view = {
        "fortran": np.asfortranarray(x),
        "strided": np.repeat(x, 2, axis=0)[::2],
        "reversed": x[::-1].copy()[::-1],
        "read-only": frozen,
    }[layout]
    a, b = mixture.expectation(view), mixture.expectation(x)
    # Converted in smaller tiles that are multiples of the kernel's, so that the sums keep their order.
    np.testing.assert_array_equal(a.scatter, b.scatter)
    np.testing.assert_array_equal(a.shift, b.shift)
    assert a.log_likelihood == b.log_likelihood
    np.testing.assert_array_equal(mixture.score_samples(view), mixture.score_samples(x))


@every_kind
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_rows_of_zero_weight_are_never_looked_at(kind: str, bad: float) -> None:
    mixture, x = drawn(kind, d=5)
    weight = np.ones(len(x))
    weight[::3] = 0.0
    spoiled = np.where(weight[:, None] == 0, bad, x)
    start = np.arange(len(x)) % 3
    resp = np.eye(3)[start]
    spoiled_resp = np.where(weight[:, None] == 0, np.nan, resp)
    for a, b in [
        (mixture.expectation(spoiled, weight), mixture.expectation(x, weight)),
        (
            moments(STRUCTURES[kind], spoiled, weight, spoiled_resp, 3).about(mixture.means),
            moments(STRUCTURES[kind], x, weight, resp, 3).about(mixture.means),
        ),
    ]:
        np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-12)
        np.testing.assert_allclose(a.shift, b.shift, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(a.weight, b.weight)
        assert a.log_likelihood == b.log_likelihood
        assert a.n_rows == b.n_rows == np.count_nonzero(weight)
    dropped = mixture.expectation(x[weight > 0])
    kept = mixture.expectation(spoiled, weight)
    np.testing.assert_allclose(kept.scatter, dropped.scatter, rtol=200 * EPS, atol=200 * EPS)
    np.testing.assert_allclose(kept.log_likelihood, dropped.log_likelihood, rtol=200 * EPS)


@every_kind
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_values_come_out_as_bad_values(kind: str, bad: float) -> None:
    mixture, x = drawn(kind, d=5)
    for question in ("labels", "score_samples", "responsibilities"):
        assert mixture.answer(x, question)[1]
    x[150, 1] = bad
    assert not np.isfinite(mixture.expectation(x).log_likelihood)
    for question in ("labels", "score_samples", "responsibilities"):
        assert not mixture.answer(x, question)[1]


@every_kind
def test_sample_follows_the_mixture(kind: str) -> None:
    mixture, _ = drawn(kind)
    n = 40_000
    x, y = mixture.sample(n, np.random.RandomState(0))
    assert x.shape == (n, 2)
    np.testing.assert_array_equal(y, np.sort(y))
    share = np.bincount(y, minlength=3) / n
    # Five standard errors: of a share, a mean and a variance.
    np.testing.assert_allclose(share, mixture.weights, rtol=0, atol=5 * 0.5 / np.sqrt(n))
    for j, covariance in enumerate(matrices(mixture.covariance.values, kind, 3, 2)):
        own, variances = x[y == j], np.diag(covariance)
        assert np.all(abs(own.mean(axis=0) - mixture.means[j]) < 5 * np.sqrt(variances / len(own)))
        assert np.all(abs(own.var(axis=0) / variances - 1) < 5 * np.sqrt(2 / len(own)))
        correlation = covariance[0, 1] / np.sqrt(variances.prod())
        assert abs(np.corrcoef(own.T)[0, 1] - correlation) < 5 / np.sqrt(len(own))
    again, _ = mixture.sample(n, np.random.RandomState(0))
    np.testing.assert_array_equal(again, x)


@every_kind
def test_parameters_cannot_be_written(kind: str) -> None:
    """Another thread may predict meanwhile."""
    mixture, _ = drawn(kind)
    for values in (*parameters(mixture), mixture.covariance.factor):
        with pytest.raises(ValueError, match="read-only"):
            values[...] = 0.0


def test_a_mixture_travels_between_processes() -> None:
    mixture, x = drawn("full")
    sent = pickle.dumps(mixture)
    mixture.expectation(x)
    assert pickle.dumps(mixture) == sent  # what can be computed again stays at home
    again = pickle.loads(sent)
    np.testing.assert_array_equal(again.score_samples(x), mixture.score_samples(x))


def far_apart(distance: float, spread: float = 1.0, d: int = 8, k: int = 3) -> tuple[Mixture, Any]:
    """A tied mixture whose means lie ``distance`` standard deviations apart, and rows that spread as given."""
    random = np.random.default_rng(3)
    root = np.tril(random.normal(size=(d, d))) * 0.2 + np.eye(d)
    means = np.arange(k)[:, None] * np.eye(d)[0] * distance
    x = spread * random.normal(size=(900, d)) @ root.T + means[np.arange(900) % k]
    return Mixture(np.full(k, 1 / k), means, TIED.form.of(TIED, (root @ root.T)[None])), x


@pytest.mark.parametrize(
    ("dtype", "distance", "bound"),
    [("f8", 100.0, 1e-12), ("f8", 1e8, 1e-13), ("f4", 3.0, 1e-5), ("f4", 1e4, 1e-5)],
)
def test_a_shared_factor_loses_no_digits_to_the_distance_between_components(
    dtype: str, distance: float, bound: float, reference: Any
) -> None:
    """Near components share their rows' products; far ones would lose ``eps * distance`` by that, and do not."""
    mixture, x = far_apart(distance)
    x = x.astype(dtype)
    assert isinstance(mixture.model_for(x, None), layouts.Shared) == (distance < 1e4)
    density, _ = reference.expectation(x.astype(np.float64), *parameters(mixture), "tied")
    np.testing.assert_allclose(mixture.score_samples(x), density, rtol=bound, atol=0)


@pytest.mark.parametrize("d", [4, 9])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
@pytest.mark.parametrize(
    ("dtype", "distance"), [("f8", 4.0), ("f8", 100.0), ("f8", 400.0), ("f8", 1e6), ("f4", 4.0), ("f4", 1e4)]
)
def test_a_tied_scatter_loses_no_digits_to_the_distance_between_components(
    dtype: str, distance: float, spread: float, d: int, reference: Any
) -> None:
    """Off by eps times the distance in standard deviations where components share their work; never its square."""
    mixture, x = far_apart(distance, spread, d)
    x = x.astype(dtype)
    weight = np.random.default_rng(0).uniform(0, 2, size=len(x))
    found = mixture.expectation(x, weight)
    exact = x.astype(np.longdouble)
    _, resp = reference.expectation(exact.astype(np.float64), *parameters(mixture), "tied")
    share = weight[:, None] * resp
    centred = exact[:, None] - mixture.means
    scatter = np.einsum("nk,nki,nkj->ij", share, centred, centred)
    shift = np.einsum("nk,nki->ki", share, centred)
    found = found.about(mixture.means)  # in float32, the means are rounded
    eps = float(np.finfo(dtype).eps)
    lost = 16 * d * eps * (1 + min(distance, 1e3 if dtype == "f8" else 10.0)) * weight.sum()
    # float32 shares are off by eps·d·z², and rows between components count for their distance.
    between = distance**2 * np.exp(-(distance**2) / 8) if dtype == "f4" else 0.0
    factor = mixture.covariance.factor[0]
    off = factor.T @ (found.scatter[0] - scatter).astype(np.float64) @ factor
    assert np.linalg.norm(off, 2) <= lost * (max(spread, 16 * d * eps * (1 + distance)) + 8 * between)
    assert np.linalg.norm(((found.shift - shift) @ factor).astype(np.float64)) <= lost * (1 + between)


def test_a_row_out_of_range_of_float32_does_not_spoil_a_tied_block() -> None:
    mixture, x = far_apart(4.0)
    x = x.astype("f4")
    x[7, 3] = 1e20  # its square overflows
    a, b = mixture.expectation(x), mixture.expectation(x.astype("f8"))
    assert np.isfinite(a.log_likelihood)
    np.testing.assert_array_equal(a.scatter, b.scatter)
