"""A feature that hardly varies, far from zero, such as a stamp of time: fitted as if it were near."""

from typing import Any

import numpy as np
import pytest

from daskgmm import CollapseError, GaussianMixture, MiniBatchGaussianMixture
from daskgmm.fit.starts import STARTS
from tests.structures import KINDS, matrices

N = 1200
DAY = 86_400_000.0  # in ms
RANDOM = np.random.default_rng(0)
GOOD = RANDOM.normal(size=(N, 2)) + 6.0 * (np.arange(N) % 2)[:, None]
# 2^-11 s of jitter are two units of the last place at 1.7e12 ms.
STAMPS = {
    "constant": np.zeros(N),
    "nearly": RANDOM.choice([0.0, 2.0**-11], N),
    "days": DAY * (np.arange(N) % 2),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_stamp = pytest.mark.parametrize("stamp", STAMPS)


def rows(stamp: str, origin: float) -> Any:
    return np.column_stack([origin + STAMPS[stamp], GOOD])


def alike(a: Any, b: Any, atol: float) -> None:
    """Models of rows that differ by an offset in the first feature."""
    order, other = (np.argsort(model.means_[:, 1]) for model in (a, b))
    np.testing.assert_allclose(a.weights_[order], b.weights_[other], atol=atol)
    np.testing.assert_allclose(a.means_[order, 1:], b.means_[other, 1:], atol=atol)
    np.testing.assert_allclose(a.lower_bound_, b.lower_bound_, atol=atol)


@each_kind
@each_stamp
def test_batch_is_as_near_zero(kind: Any, stamp: str) -> None:
    near, far = (
        GaussianMixture(2, covariance_type=kind, random_state=0, tol=1e-8).fit(rows(stamp, origin))
        for origin in (0.0, 1.7e12)
    )
    # Means that float64 holds to half a unit, 1.2e-4, where a standard deviation is .001.
    alike(near, far, 1e-2 if stamp == "nearly" else 1e-9)


@pytest.mark.parametrize("start", [*STARTS, "subsample"])
def test_any_start_is_as_near_zero(start: Any) -> None:
    """Distances taken as differences of squares would be noise: -1.658 for -2.454 from "k-means++"."""
    near, far = (
        GaussianMixture(2, random_state=0, init_params=start, tol=1e-8, max_iter=500).fit(rows("constant", origin))
        for origin in (0.0, 1.7e12)
    )
    alike(near, far, 1e-9)


def test_components_that_shrink_onto_one_stamp_each() -> None:
    """From one variance for all days, a move to a day leaves of a variance of 1e15 nothing but rounding."""
    x = np.column_stack([1.7e12 + DAY * (np.arange(N) % 3), RANDOM.normal(size=N)])
    means = np.column_stack([1.7e12 + DAY * np.array([-0.3, 1.2, 2.4]), np.zeros(3)])
    precisions: dict[Any, Any] = {"full": np.diag([DAY**-2, 1.0]), "diag": np.array([DAY**-2, 1.0])}
    for kind, precision in precisions.items():
        start: Any = {"weights_init": np.full(3, 1 / 3), "means_init": means, "precisions_init": [precision] * 3}
        model = GaussianMixture(3, covariance_type=kind, tol=1e-9, max_iter=200, **start).fit(x)
        np.testing.assert_array_equal(np.sort(model.means_[:, 0]), 1.7e12 + DAY * np.arange(3))
        variances = matrices(model.covariances_, kind, 3, 2)[:, 0, 0]
        np.testing.assert_allclose(variances, 1e-6, rtol=1e-9)


@each_kind
@each_stamp
def test_online_is_as_near_zero(kind: Any, stamp: str) -> None:
    models = []
    for origin in (0.0, 1.7e12):
        x = rows(stamp, origin)
        fitted = MiniBatchGaussianMixture(2, covariance_type=kind, random_state=0).fit(x)
        stream = MiniBatchGaussianMixture(2, covariance_type=kind, random_state=0, half_life=500)
        for first in range(0, N, 200):
            stream.partial_fit(x[first : first + 500])
        models.append((fitted, stream))
    for near, far in zip(*models, strict=True):
        alike(near, far, 1e-2 if stamp == "nearly" else 1e-6)


@each_kind
def test_without_reg_covar_the_error_names_component_and_feature(kind: Any) -> None:
    x = rows("constant", 1.7e12)
    if kind == "spherical":
        x[:] = x[0]
    with pytest.raises(CollapseError, match=r"component 0 .* feature 0 does not vary") as caught:
        GaussianMixture(1, covariance_type=kind, reg_covar=0).fit(x)
    assert caught.value.component == 0


def test_a_ridge_that_rounding_swallows_is_told_with_one_that_it_does_not() -> None:
    """Twice the same feature, in units that make 1e-6 nothing: luck decided whether that was fitted, wrongly."""
    x = np.column_stack([GOOD[:, 0], 1e8 * GOOD[:, 1], 1e8 * GOOD[:, 1]])
    with pytest.raises(
        CollapseError, match=r"feature [12] follows from others .* raise reg_covar to (.*)\.$"
    ) as caught:
        GaussianMixture(1).fit(x)
    enough = float(str(caught.value).rsplit(" ", 1)[1].rstrip("."))
    model = GaussianMixture(1, reg_covar=enough).fit(x)
    # The covariance of the two, and what it says of their difference.
    eigenvalue = model.covariances_[0, 1, 1] - model.covariances_[0, 1, 2]
    np.testing.assert_allclose(eigenvalue, enough, rtol=1e-2)
    assert np.isfinite(model.lower_bound_)
