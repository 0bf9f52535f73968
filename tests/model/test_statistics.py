"""Statistics: laws of a mergeable value, for each covariance structure."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskgmm.model.covariance import STRUCTURES, Diagonal
from daskgmm.model.mixture import moments
from daskgmm.model.statistics import Statistics

EPS = np.finfo(np.float64).eps

structures = st.sampled_from(sorted(STRUCTURES))
offsets = st.sampled_from([0.0, 1.0, -1e3, 1e8])


def draw(seed: int, n: int, d: int, k: int, offset: float) -> tuple[Any, Any, Any, Any]:
    """Rows in clusters, weights (some of them zero), responsibilities, and k points nearby."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d)) + random.normal(scale=3, size=(1, d)) + offset
    weight = random.choice([0.0, 0.25, 1.0, 7.0], size=n)
    resp = random.dirichlet(np.full(k, 0.5), size=n).reshape(n, k)
    points = offset + random.normal(scale=2, size=(k, d))
    return x, weight, resp, points


sizes = {
    "kind": structures,
    "seed": st.integers(0, 2**32 - 1),
    "n": st.integers(0, 300),
    "d": st.integers(1, 6),
    "k": st.integers(1, 4),
    "offset": offsets,
}


def reach(x: Any, *points: Any) -> float:
    """The longest distance between any of the rows and points."""
    everything = np.concatenate([x, *points])
    return float(np.linalg.norm(np.ptp(everything, axis=0))) if len(everything) else 0.0


def assert_same(a: Statistics, b: Statistics, n: int, r: float) -> None:
    """Equal sums, whatever they are about.

    A sum of n terms no larger than m carries an error of at most n·eps·m in each order of adding, and each
    term a few eps of its own; a move adds a few terms of the size of weight·reach². The offset of the data is
    in no term, as all are differences.
    """
    weight = max(a.total_weight, 1.0)
    unit = 4 * (n + 16) * EPS * weight
    moved = b.about(a.reference)
    np.testing.assert_allclose(a.weight, moved.weight, rtol=0, atol=unit)
    np.testing.assert_allclose(a.shift, moved.shift, rtol=0, atol=unit * r)
    np.testing.assert_allclose(a.scatter, moved.scatter, rtol=0, atol=unit * r**2)
    np.testing.assert_allclose(a.total_weight, b.total_weight, rtol=0, atol=unit)
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=(n + 16) * EPS, atol=unit)
    assert a.n_rows == b.n_rows


@given(**sizes, split=st.integers(0, 300))
def test_a_sum_is_the_statistics_of_the_concatenation(
    kind: str, seed: int, n: int, d: int, k: int, offset: float, split: int
) -> None:
    x, w, resp, _ = draw(seed, n, d, k, offset)
    structure, m = STRUCTURES[kind], min(split, n)
    a = moments(structure, x[:m], w[:m], resp[:m], k)
    b = moments(structure, x[m:], w[m:], resp[m:], k)
    whole = moments(structure, x, w, resp, k)
    # The reference of an empty component is nobody's: it must not cost digits.
    r = reach(x, *(s.reference[s.weight > 0] for s in (a, b, whole)))
    assert_same(whole, a + b, n, r)


@given(**sizes)
def test_about_there_and_back_is_the_identity(kind: str, seed: int, n: int, d: int, k: int, offset: float) -> None:
    x, w, resp, points = draw(seed, n, d, k, offset)
    s = moments(STRUCTURES[kind], x, w, resp, k)
    back = s.about(points).about(s.reference)
    np.testing.assert_array_equal(back.reference, s.reference)
    assert_same(s, back, n, reach(x, points, s.reference[s.weight > 0]))


@given(**sizes)
def test_about_moves_exactly(kind: str, seed: int, n: int, d: int, k: int, offset: float, reference: Any) -> None:
    x, w, resp, points = draw(seed, n, d, k, offset)
    s = moments(STRUCTURES[kind], x, w, resp, k).about(points)
    weight, shift, scatter = reference.sums(x, w[:, None] * resp, points)
    r = reach(x, points, s.reference[s.weight > 0])
    unit = 4 * (n + 16) * EPS * max(w.sum(), 1.0)
    np.testing.assert_allclose(s.weight, weight.astype(float), rtol=0, atol=unit)
    np.testing.assert_allclose(s.shift, shift.astype(float), rtol=0, atol=unit * r)
    expected = {
        "full": lambda: scatter,
        "tied": lambda: scatter.sum(axis=0),
        "diag": lambda: np.diagonal(scatter, axis1=1, axis2=2),
        "spherical": lambda: np.trace(scatter, axis1=1, axis2=2) / d,
    }[kind]()
    np.testing.assert_allclose(s.scatter, expected.astype(float), rtol=0, atol=unit * r**2)


@given(**sizes, splits=st.tuples(st.integers(0, 300), st.integers(0, 300)))
def test_addition_is_associative_and_commutative_up_to_rounding(
    kind: str, seed: int, n: int, d: int, k: int, offset: float, splits: tuple[int, int]
) -> None:
    x, w, resp, points = draw(seed, n, d, k, offset)
    lo, hi = sorted(min(s, n) for s in splits)
    parts = [slice(0, lo), slice(lo, hi), slice(hi, n)]
    a, b, c = (moments(STRUCTURES[kind], x[p], w[p], resp[p], k) for p in parts)
    r = reach(x, points, *(s.reference[s.weight > 0] for s in (a, b, c)))
    assert_same(((a + b) + c).about(points), a + (b + c), n, r)
    assert_same((a + b).about(points), b + a, n, r)


@given(**sizes)
def test_no_rows_add_nothing(kind: str, seed: int, n: int, d: int, k: int, offset: float) -> None:
    x, w, resp, _ = draw(seed, n, d, k, offset)
    s = moments(STRUCTURES[kind], x, w, resp, k)
    nothing = moments(STRUCTURES[kind], x[:0], w[:0], resp[:0], k)
    for total in (s + nothing, nothing + s):
        np.testing.assert_array_equal(total.weight, s.weight)
        used = s.weight > 0
        np.testing.assert_array_equal(total.means[used], s.means[used])
        assert total.n_rows == s.n_rows
        np.testing.assert_array_equal(total.about(s.reference).scatter, s.scatter)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_about_the_same_points_sums_add_plainly(kind: str) -> None:
    x, w, resp, points = draw(0, 40, 3, 2, 0.0)
    a, b = (moments(STRUCTURES[kind], x[p], w[p], resp[p], 2).about(points) for p in (slice(20), slice(20, 40)))
    total = a + b
    np.testing.assert_array_equal(total.reference, points)
    for name in ("weight", "shift", "scatter"):
        np.testing.assert_array_equal(getattr(total, name), getattr(a, name) + getattr(b, name))


@pytest.mark.parametrize("kind", STRUCTURES)
def test_scaled_weighs_every_row_alike(kind: str) -> None:
    x, w, resp, points = draw(0, 40, 3, 2, 0.0)
    s = moments(STRUCTURES[kind], x, w, resp, 2)
    heavier = moments(STRUCTURES[kind], x, 4 * w, resp, 2)
    for name in ("weight", "shift", "scatter", "log_likelihood", "total_weight", "n_rows"):
        # A power of two scales without rounding.
        np.testing.assert_array_equal(getattr(s.scaled(4.0), name), getattr(heavier, name))
    np.testing.assert_array_equal(s.scaled(4.0).about(points).scatter, 4 * s.about(points).scatter)
    np.testing.assert_array_equal(s.scaled(4.0).means, s.means)


def test_operations_return_new_values() -> None:
    x, w, resp, points = draw(0, 40, 3, 2, 0.0)
    a, b = moments(Diagonal, x[:20], w[:20], resp[:20], 2), moments(Diagonal, x[20:], w[20:], resp[20:], 2)
    before = pickle.dumps((a, b))
    _ = a + b, a.about(points), a.scaled(0.5), a.means
    assert pickle.dumps((a, b)) == before
    with pytest.raises(FrozenInstanceError):
        a.weight = b.weight  # type: ignore[misc]


def test_the_mean_of_an_empty_component_is_its_reference() -> None:
    s = moments(Diagonal, np.array([[1.0], [3.0]]), None, np.array([1, 1]), 2)
    np.testing.assert_array_equal(s.weight, [0, 2])
    np.testing.assert_array_equal(s.means[1], [2.0])
    np.testing.assert_array_equal(s.means[0], s.reference[0])
