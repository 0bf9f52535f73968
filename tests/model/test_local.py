"""Local coordinates: any numbers are a mixture, and EM's step is the gradient."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskgmm.errors import CollapseError
from daskgmm.model import local
from daskgmm.model.mixture import Mixture
from daskgmm.model.update import Regularised
from tests.strategies import kinds, seeds
from tests.structures import EPS, KINDS, draw_mixture, draw_rows, matrices, parameters

mixtures = st.builds(draw_mixture, kinds, st.integers(1, 4), st.integers(1, 4), seeds)


def divergence(a: Mixture, b: Mixture, kind: str) -> Any:
    """Kullback & Leibler's, of a row with its component, from the definition."""
    d, found = a.n_features, 0.0
    dense = [matrices(m.covariance.values, kind, *m.means.shape) for m in (a, b)]
    for w, v, m, n, s, t in zip(a.weights, b.weights, a.means, b.means, *dense, strict=True):
        inverse = np.linalg.inv(t)
        apart = np.trace(inverse @ s) - d + (n - m) @ inverse @ (n - m)
        apart += np.linalg.slogdet(t)[1] - np.linalg.slogdet(s)[1]
        found += w * (np.log(w / v) + apart / 2)
    return found


def change(mixture: Mixture, seed: int = 0) -> Any:
    place = local.coordinates(mixture)
    return np.random.default_rng(seed).normal(size=len(place)) * np.maximum(1, abs(place))


@given(mixtures)
def test_there_and_back_is_the_identity(mixture: Mixture) -> None:
    found = local.at(local.coordinates(mixture), mixture)
    for a, b in zip(parameters(found), parameters(mixture), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.covariance.factor, mixture.covariance.factor, rtol=1e-13, atol=1e-13)


@given(mixtures, seeds)
def test_any_numbers_are_a_mixture(mixture: Mixture, seed: int) -> None:
    place = local.coordinates(mixture) + change(mixture, seed)
    found = local.at(place, mixture)
    found.check()
    found.covariance.check()
    back = local.coordinates(found)
    back[: mixture.n_components] += np.log(np.exp(place[: mixture.n_components]).sum())  # weights add up to 1
    np.testing.assert_allclose(back, place, rtol=1e-9, atol=1e-9)


@given(mixtures, seeds)
def test_inner_products_are_the_information_of_a_row_and_its_component(mixture: Mixture, seed: int) -> None:
    kind, delta = mixture.covariance.structure.name, 1e-4 * change(mixture, seed)
    place = local.coordinates(mixture)
    apart = sum(divergence(mixture, local.at(place + side * delta, mixture), kind) for side in (1, -1))
    np.testing.assert_allclose(local.products(delta[None], mixture)[0, 0], apart, rtol=1e-3)
    both = np.stack([delta, change(mixture, seed + 1)])
    (aa, ab), (ba, bb) = local.products(both, mixture)
    assert ab == ba
    np.testing.assert_allclose(local.products(both.sum(axis=0)[None], mixture), aa + 2 * ab + bb, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_em_step_is_the_gradient(kind: str) -> None:
    mixture, update = draw_mixture(kind, 3, 3), Regularised()
    x = np.concatenate([mixture.sample(200, np.random.RandomState(0))[0], draw_rows(mixture, 50)])
    for _ in range(200):
        place = local.coordinates(mixture)
        following = update(mixture, mixture.expectation(x))
        step = local.coordinates(following) - place
        if local.products(step[None], mixture)[0, 0] < 1e-6:
            break
        mixture = following
    ahead, aside = step, change(mixture)
    for delta in (1e-3 * ahead, 1e-6 * aside):
        slope = np.subtract(*(local.at(place + h * delta, mixture).score_samples(x).mean() for h in (1, -1))) / 2
        (length, along), (_, size) = local.products(np.stack([step, delta]), mixture)
        np.testing.assert_allclose(along, slope, rtol=0, atol=0.01 * np.sqrt(length * size))
    assert 1e-8 < length < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_felt_by_each_component_alike(kind: str) -> None:
    mixture = draw_mixture(kind, 3, 2)
    light = Mixture(np.array([1e-9, 0.4, 0.6 - 1e-9]), mixture.means, mixture.covariance)
    delta = np.zeros_like(local.coordinates(light))
    delta[3] = 1.0  # of the first mean
    assert local.products(delta[None], light)[0, 0] < 1e-7
    first = light.covariance.whiten(np.array([1.0, 0.0]), 0)
    np.testing.assert_allclose(local.largest(delta, light), np.linalg.norm(first), rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_component_is_a_place_too(kind: str) -> None:
    mixture = draw_mixture(kind, 3, 2)
    empty = Mixture(np.array([0.0, 0.5, 0.5]), mixture.means, mixture.covariance)
    place = local.coordinates(empty)
    assert np.isfinite(place).all()
    np.testing.assert_allclose(local.at(place, empty).weights, empty.weights, atol=EPS)
    assert np.isfinite(local.products(np.stack([place, place[::-1]]), empty)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [800.0, -800.0, np.inf, np.nan])
def test_what_float64_does_not_hold_is_no_mixture(kind: str, size: float) -> None:
    mixture = draw_mixture(kind, 3, 2)
    place = local.coordinates(mixture)
    place[-1] = size
    with pytest.raises(CollapseError):
        local.at(place, mixture)
