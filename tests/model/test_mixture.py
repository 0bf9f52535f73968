"""Mixture: densities, expectation and maximisation against the definitions in extended precision."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from daskgmm.errors import CollapseError
from daskgmm.model.covariance import STRUCTURES
from daskgmm.model.mixture import Mixture, moments

EPS = np.finfo(np.float64).eps
KINDS = sorted(STRUCTURES)


def covariances(kind: str, k: int, d: int, random: Any) -> Any:
    a = random.normal(size=(k, d, d))
    full = a @ np.swapaxes(a, 1, 2) / d + 0.5 * np.eye(d)
    diagonal = np.diagonal(full, axis1=1, axis2=2).copy()
    return {"full": full, "tied": full[0], "diag": diagonal, "spherical": diagonal[:, 0].copy()}[kind]


def draw(kind: str, k: int = 3, d: int = 2, n: int = 200, seed: int = 0, offset: float = 0.0) -> Any:
    """A mixture, and rows that lie about it."""
    random = np.random.default_rng(seed)
    means = offset + random.normal(scale=2, size=(k, d))
    weights = random.dirichlet(np.full(k, 3.0))
    mixture = Mixture(weights, means, STRUCTURES[kind].of(covariances(kind, k, d, random)))
    x = offset + random.normal(scale=2, size=(n, d))
    return mixture, x


def parts(mixture: Mixture) -> tuple[Any, Any, Any]:
    return mixture.weights, mixture.means, mixture.covariance.values


shapes = {
    "kind": st.sampled_from(KINDS),
    "k": st.integers(1, 4),
    "d": st.integers(1, 5),
    "n": st.integers(1, 300),
    "seed": st.integers(0, 2**32 - 1),
    "offset": st.sampled_from([0.0, 1e8]),
}


@given(**shapes)
def test_expectation_is_the_definition(
    kind: str, k: int, d: int, n: int, seed: int, offset: float, reference: Any
) -> None:
    mixture, x = draw(kind, k, d, n, seed, offset)
    random = np.random.default_rng(seed + 1)
    w = random.choice([0.0, 0.5, 1.0, 3.0], size=n)
    found = mixture.expectation(x, w)
    log_density, resp = reference.expectation(x, *parts(mixture), kind)
    weight, shift, scatter = reference.sums(x, w[:, None] * resp, mixture.means)
    expected = {
        "full": lambda: scatter,
        "tied": lambda: scatter.sum(axis=0),
        "diag": lambda: np.diagonal(scatter, axis1=1, axis2=2),
        "spherical": lambda: np.trace(scatter, axis1=1, axis2=2) / d,
    }[kind]()
    # An exponent of size e is off by a few d·eps·e, times the condition number of the factors (about 30), and
    # with it each responsibility; the sums add n·eps. None of it depends on the offset.
    exponent = float(abs(reference.joint(x, *parts(mixture), kind)).max())
    unit = EPS * (32 * 4 * d * (1 + exponent) + 4 * n) * max(w.sum(), 1.0)
    r = float(np.linalg.norm(np.ptp(np.concatenate([x, mixture.means]), axis=0)))
    np.testing.assert_allclose(found.weight, weight.astype(float), rtol=0, atol=unit)
    np.testing.assert_allclose(found.shift, shift.astype(float), rtol=0, atol=unit * r)
    np.testing.assert_allclose(found.scatter, expected.astype(float), rtol=0, atol=unit * r**2)
    np.testing.assert_allclose(found.log_likelihood, float(w @ log_density), rtol=0, atol=unit)
    assert found.total_weight == w.sum()
    assert found.n_rows == np.count_nonzero(w)
    np.testing.assert_array_equal(found.reference, mixture.means)


@given(**shapes, split=st.integers(0, 300))
def test_expectations_of_parts_add_up(
    kind: str, k: int, d: int, n: int, seed: int, offset: float, split: int
) -> None:
    mixture, x = draw(kind, k, d, n, seed, offset)
    m = min(split, n)
    whole, total = mixture.expectation(x), mixture.expectation(x[:m]) + mixture.expectation(x[m:])
    # The same rows give the same terms but for the last bits of vectorised functions.
    r = float(np.linalg.norm(np.ptp(np.concatenate([x, mixture.means]), axis=0)))
    unit = 4 * (n + 64 * d) * n * EPS
    np.testing.assert_allclose(total.weight, whole.weight, rtol=0, atol=unit)
    np.testing.assert_allclose(total.shift, whole.shift, rtol=0, atol=unit * r)
    np.testing.assert_allclose(total.scatter, whole.scatter, rtol=0, atol=unit * r**2)
    np.testing.assert_allclose(total.log_likelihood, whole.log_likelihood, rtol=4 * (n + 16) * EPS)
    assert total.n_rows == whole.n_rows == n


@given(**shapes)
def test_maximise_is_the_definition(
    kind: str, k: int, d: int, n: int, seed: int, offset: float, reference: Any
) -> None:
    mixture, x = draw(kind, k, d, n + 40, seed, offset)
    w = np.random.default_rng(seed + 1).choice([0.5, 1.0, 3.0], size=len(x))
    updated = mixture.maximise(mixture.expectation(x, w), reg_covar=1e-3)
    _, resp = reference.expectation(x, *parts(mixture), kind)
    weights, means, values = reference.maximise(x, w[:, None] * resp, kind, 1e-3)
    # As for the expectation, divided by the weight of the component; means also round to eps·|mean|.
    exponent = float(abs(reference.joint(x, *parts(mixture), kind)).max())
    share = float(weights.min())
    unit = EPS * (32 * 4 * d * (1 + exponent) + 4 * n) / share
    r = float(np.linalg.norm(np.ptp(np.concatenate([x, mixture.means]), axis=0)))
    np.testing.assert_allclose(updated.weights, weights.astype(float), rtol=0, atol=unit)
    np.testing.assert_allclose(updated.means, means.astype(float), rtol=0, atol=unit * r + 2 * EPS * abs(offset))
    np.testing.assert_allclose(updated.covariance.values, values.astype(float), rtol=0, atol=4 * unit * r**2)
    np.testing.assert_allclose(updated.weights.sum(), 1.0, rtol=0, atol=4 * EPS)


@pytest.mark.parametrize("kind", KINDS)
def test_densities_are_scipys(kind: str) -> None:
    mixture, x = draw(kind)
    values = mixture.covariance.values
    full = {
        "full": lambda: values,
        "tied": lambda: [values] * 3,
        "diag": lambda: [np.diag(v) for v in values],
        "spherical": lambda: [v * np.eye(2) for v in values],
    }[kind]()
    joint = np.stack(
        [
            np.log(w) + multivariate_normal(m, c).logpdf(x)
            for w, m, c in zip(mixture.weights, mixture.means, full, strict=True)
        ],
        axis=1,
    )
    density = np.log(np.exp(joint).sum(axis=1))
    np.testing.assert_allclose(mixture.score_samples(x), density, rtol=1e-11)
    resp = np.exp(joint - density[:, None])
    np.testing.assert_allclose(mixture.responsibilities(x), resp, rtol=1e-10)
    np.testing.assert_array_equal(mixture.labels(x), joint.argmax(axis=1))
    np.testing.assert_allclose(mixture.entropies(x), -(resp * np.log(resp)).sum(axis=1), atol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 4095, 4096, 4097, 9000])
def test_answers_have_one_entry_per_row(n: int) -> None:
    mixture, x = draw("full", n=n)
    assert mixture.score_samples(x).shape == mixture.labels(x).shape == mixture.entropies(x).shape == (n,)
    assert mixture.responsibilities(x).shape == (n, 3)
    assert mixture.labels(x).dtype == np.int64
    # Tiles leave no seam: each row is answered as if it were alone.
    some = np.unique(np.clip([0, 1, 4094, 4095, 4096, 8999], 0, max(n - 1, 0)))[: n or 0]
    for i in some:
        np.testing.assert_allclose(mixture.score_samples(x[i : i + 1]), mixture.score_samples(x)[[i]], rtol=1e-13)
        np.testing.assert_array_equal(mixture.labels(x[i : i + 1]), mixture.labels(x)[[i]])


@pytest.mark.parametrize("kind", KINDS)
def test_far_rows_stay_in_log_space(kind: str) -> None:
    mixture, _ = draw(kind)
    x = np.array([[1e3, -1e3], [1e7, 1e7], [1e150, 0.0]])
    assert np.all(mixture.score_samples(x) < -700)  # exp would be 0
    assert np.all(np.isfinite(mixture.score_samples(x)))
    # Normalised after the peak is taken off: rounding of an exponent of 1e14 must not reach the sum.
    np.testing.assert_allclose(mixture.responsibilities(x).sum(axis=1), 1.0, rtol=0, atol=8 * EPS)
    assert np.all(mixture.entropies(x) <= np.log(3) + 8 * EPS)
    assert np.isfinite(mixture.expectation(x[:1]).log_likelihood)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["f2", ">f8", "i2", "u1", "i8", "?", "g"])
def test_every_dtype_counts_as_its_float64_values(kind: str, dtype: str) -> None:
    mixture, x = draw(kind)
    stored = (10 * x).astype(np.float64)
    stored = abs(stored).astype(dtype) if np.dtype(dtype).kind in "ub" else stored.astype(dtype)
    same = stored.astype(np.float64)
    a, b = mixture.expectation(stored), mixture.expectation(same)
    # All but float32 are converted to the same float64: not a bit differs.
    for name in ("weight", "shift", "scatter", "log_likelihood", "total_weight", "n_rows"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(mixture.responsibilities(stored), mixture.responsibilities(same))
    assert a.scatter.dtype == np.float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["f4", ">f4"])
def test_float32_rows_lose_no_more_than_float32_products(kind: str, dtype: str) -> None:
    mixture, x = draw(kind)
    stored = (10 * x).astype(dtype)
    a, b = mixture.expectation(stored), mixture.expectation(stored.astype(np.float64))
    # Each product is off by a few eps of float32; (d + 2) of them, amplified by correlation, reach a log-density
    # that is quadratic in the distance.
    k, d = mixture.means.shape
    far = np.abs(stored.astype(np.float64)[:, None] - mixture.means).max() ** 2
    far *= mixture.covariance.precisions.max() * d
    unit = 4 * (d + 2) * 2.0**-24 * mixture.covariance.amplification(k, d) * far * len(x)
    assert abs(a.log_likelihood - b.log_likelihood) <= unit
    np.testing.assert_allclose(a.weight, b.weight, rtol=0, atol=unit)
    assert a.weight.dtype == a.shift.dtype == a.scatter.dtype == np.float64
    assert a.log_likelihood != b.log_likelihood  # float32 products were taken


def test_float32_rows_are_computed_in_float64_where_features_cancel() -> None:
    d = 4
    covariance = np.full((1, d, d), 1.0) + 1e-5 * np.eye(d)  # correlations of 0.99999
    mixture = Mixture(np.ones(1), np.zeros((1, d)), STRUCTURES["full"].of(covariance))
    assert mixture.covariance.amplification(1, d) > 32
    x = np.random.default_rng(0).normal(size=(500, d)).astype(np.float32)
    a, b = mixture.expectation(x), mixture.expectation(x.astype(np.float64))
    np.testing.assert_array_equal(a.scatter, b.scatter)
    assert a.log_likelihood == b.log_likelihood


@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed", "read-only"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_memory_layout_counts_alike(layout: str, kind: str) -> None:
    mixture, x = draw(kind, d=5, n=9000)
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_rows_of_zero_weight_are_never_looked_at(kind: str, bad: float) -> None:
    mixture, x = draw(kind, d=5)
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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_bad_values_come_out_as_bad_values(kind: str, bad: float) -> None:
    mixture, x = draw(kind, d=5)
    x[150, 1] = bad
    assert not np.isfinite(mixture.expectation(x).log_likelihood)
    assert not np.isfinite(moments(STRUCTURES[kind], x).scatter).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_component_stays_where_it_is(kind: str) -> None:
    mixture, x = draw(kind, d=5)
    emptied = Mixture(np.array([0.4, 0.0, 0.6]), mixture.means, mixture.covariance)
    s = emptied.expectation(x)
    assert s.weight[1] == 0
    updated = emptied.maximise(s, reg_covar=1e-6)
    assert updated.weights[1] == 0
    np.testing.assert_array_equal(updated.means[1], mixture.means[1])
    if kind != "tied":
        np.testing.assert_array_equal(updated.covariance.values[1], mixture.covariance.values[1])
    moved = emptied.maximise(s.about(mixture.means + 1), reg_covar=1e-6)
    np.testing.assert_array_equal(moved.means[1], mixture.means[1])  # wherever its sums are taken about
    assert np.all(np.isfinite(updated.covariance.values))
    assert np.all(updated.labels(x) != 1)
    np.testing.assert_array_equal(updated.responsibilities(x)[:, 1], 0)
    assert np.all(np.isfinite(updated.score_samples(x)))


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
@pytest.mark.parametrize("place", [0.0, 1.0, -1e8, 0.1])
def test_a_component_on_one_point_collapses(kind: str, place: float) -> None:
    mixture, x = draw(kind)
    x[:50] = place
    labels = np.where(np.arange(len(x)) < 50, 1, 2 * (np.arange(len(x)) % 2))
    s = moments(STRUCTURES[kind], x, None, labels, 3)
    with pytest.raises(CollapseError) as caught:
        mixture.maximise(s)
    assert caught.value.component == 1
    assert mixture.maximise(s, reg_covar=1e-6).covariance.values.shape == STRUCTURES[kind].shape(3, 2)


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_a_spread_that_float64_cannot_hold_collapses(kind: str) -> None:
    # Neighbouring numbers at 1e8: their variance is rounding of the data, whatever its digits say.
    mixture, x = draw(kind, d=5)
    x[:50] = np.where(np.arange(50)[:, None] % 2, 1e8, np.nextafter(1e8, 2e8))
    labels = np.where(np.arange(len(x)) < 50, 1, 2 * (np.arange(len(x)) % 2))
    with pytest.raises(CollapseError) as caught:
        mixture.maximise(moments(STRUCTURES[kind], x, None, labels, 3))
    assert caught.value.component == 1


def test_tied_collapses_only_if_all_do() -> None:
    mixture, x = draw("tied")
    labels = np.arange(len(x)) % 3
    on_points = mixture.means[labels]
    with pytest.raises(CollapseError):
        mixture.maximise(moments(STRUCTURES["tied"], on_points, None, labels, 3))
    on_points[::3] = x[::3]
    mixture.maximise(moments(STRUCTURES["tied"], on_points, None, labels, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_moments_without_a_start_are_the_overall_moments(kind: str) -> None:
    _, x = draw(kind, offset=1e8)
    s = moments(STRUCTURES[kind], x)
    centred = x - x[0]  # exact
    np.testing.assert_allclose(s.means[0] - x[0], centred.mean(axis=0), rtol=0, atol=2 * EPS * 1e8)
    cov = np.cov(centred.T, bias=True)
    variances = STRUCTURES[kind].variances(STRUCTURES[kind].per_weight(s.about(s.means).scatter, s.weight), 1, 2)
    expected = np.diag(cov) if kind != "spherical" else np.full(2, np.trace(cov) / 2)
    np.testing.assert_allclose(variances[0], expected, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_sample_follows_the_mixture(kind: str) -> None:
    mixture, _ = draw(kind)
    n = 40_000
    x, y = mixture.sample(n, np.random.RandomState(0))
    assert x.shape == (n, 2)
    np.testing.assert_array_equal(y, np.sort(y))
    share = np.bincount(y, minlength=3) / n
    # Five standard errors: of a share, a mean and a variance.
    np.testing.assert_allclose(share, mixture.weights, rtol=0, atol=5 * 0.5 / np.sqrt(n))
    variances = type(mixture.covariance).variances(mixture.covariance.values, 3, 2)
    for j in range(3):
        own = x[y == j]
        error = 5 * np.sqrt(variances[j] / len(own))
        assert np.all(abs(own.mean(axis=0) - mixture.means[j]) < error)
        assert np.all(abs(own.var(axis=0) / variances[j] - 1) < 5 * np.sqrt(2 / len(own)))
    if kind in ("full", "tied"):
        c = mixture.covariance.values if kind == "tied" else mixture.covariance.values[0]
        found = np.cov(x[y == 0].T)[0, 1] / np.sqrt(c[0, 0] * c[1, 1])
        assert abs(found - c[0, 1] / np.sqrt(c[0, 0] * c[1, 1])) < 5 / np.sqrt(np.sum(y == 0))
    again, _ = mixture.sample(n, np.random.RandomState(0))
    np.testing.assert_array_equal(again, x)


def test_a_mixture_travels_between_processes() -> None:
    mixture, x = draw("full")
    mixture.expectation(x)
    again = pickle.loads(pickle.dumps(mixture))
    np.testing.assert_array_equal(again.score_samples(x), mixture.score_samples(x))


def far_apart(distance: float, spread: float = 1.0, d: int = 8, k: int = 3) -> tuple[Mixture, Any]:
    """A tied mixture whose means lie ``distance`` standard deviations apart, and rows that spread as given."""
    random = np.random.default_rng(3)
    root = np.tril(random.normal(size=(d, d))) * 0.2 + np.eye(d)
    means = np.arange(k)[:, None] * np.eye(d)[0] * distance
    x = spread * random.normal(size=(900, d)) @ root.T + means[np.arange(900) % k]
    return Mixture(np.full(k, 1 / k), means, STRUCTURES["tied"].of(root @ root.T)), x


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
    assert bool(len(mixture._packed(x, None).products)) == (distance < 1e4)
    density, _ = reference.expectation(x.astype(np.float64), *parts(mixture), "tied")
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
    _, resp = reference.expectation(exact.astype(np.float64), *parts(mixture), "tied")
    share = weight[:, None] * resp
    centred = exact[:, None] - mixture.means
    scatter = np.einsum("nk,nki,nkj->ij", share, centred, centred)
    shift = np.einsum("nk,nki->ki", share, centred)
    found = found.about(mixture.means)  # in float32, the means are rounded
    eps = np.finfo(dtype).eps
    lost = 16 * d * eps * (1 + min(distance, 1e3 if dtype == "f8" else 10.0)) * weight.sum()
    # float32 shares are off by eps·d·z², and rows between components count for their distance.
    between = distance**2 * np.exp(-(distance**2) / 8) if dtype == "f4" else 0.0
    factor = mixture.covariance.factor
    off = factor.T @ (found.scatter - scatter).astype(np.float64) @ factor
    assert np.linalg.norm(off, 2) <= lost * (max(spread, 16 * d * eps * (1 + distance)) + 8 * between)
    assert np.linalg.norm(((found.shift - shift) @ factor).astype(np.float64)) <= lost * (1 + between)


def test_a_row_out_of_range_of_float32_does_not_spoil_a_tied_block() -> None:
    mixture, x = far_apart(4.0)
    x = x.astype("f4")
    x[7, 3] = 1e20  # its square overflows
    a, b = mixture.expectation(x), mixture.expectation(x.astype("f8"))
    assert np.isfinite(a.log_likelihood)
    np.testing.assert_array_equal(a.scatter, b.scatter)
