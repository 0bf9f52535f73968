"""Laws of mergeable statistics, for each kind of covariance."""

import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import DIAGONAL, STRUCTURES
from tests.strategies import Rows, chunkings, mixtures, parts, rows
from tests.structures import EPS, KINDS, draw_rows

every_kind = pytest.mark.parametrize("kind", KINDS)
SUMS = ("weight", "shift", "scatter")


def given_to(mixture: Mixture, r: Rows) -> Statistics:
    """Statistics of rows under their own responsibilities, about their own means."""
    return moments(mixture.covariance.structure, r.x, r.weight, r.resp, mixture.n_components)


def drawn(data: st.DataObject) -> tuple[Mixture, Rows, Any]:
    """A mixture, rows about it, and points that have nothing to do with the rows."""
    mixture = data.draw(mixtures())
    return mixture, data.draw(rows(mixture)), np.round(mixture.means) + 0.75


def reach(x: Any, *points: Any) -> float:
    """The longest distance between any of the rows and points."""
    everything = np.concatenate([x, *points])
    return float(np.linalg.norm(np.ptp(everything, axis=0))) if len(everything) else 0.0


def used(*statistics: Statistics) -> list[Any]:
    """References that count: that of an empty component is nobody's, and must not cost digits."""
    return [s.reference[s.weight > 0] for s in statistics]


def assert_same(a: Statistics, b: Statistics, n: int, r: float) -> None:
    """Equal sums, whatever they are about.

    A sum of n terms no larger than m carries an error of at most n·eps·m in each order of adding, and each
    term a few eps of its own; a move adds a few terms of the size of weight·reach². The offset of the data is
    in no term, as all are differences.
    """
    unit, moved = 4 * (n + 16) * EPS * max(a.total_weight, 1.0), b.about(a.reference)
    for name, size in zip(SUMS, (1.0, r, r**2), strict=True):
        np.testing.assert_allclose(getattr(a, name), getattr(moved, name), rtol=0, atol=unit * size)
    np.testing.assert_allclose(a.total_weight, b.total_weight, rtol=0, atol=unit)
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=(n + 16) * EPS, atol=unit)
    assert a.n_rows == b.n_rows


@given(st.data())
def test_a_sum_is_the_statistics_of_the_concatenation(data: st.DataObject) -> None:
    mixture, r, _ = drawn(data)
    found = [given_to(mixture, r.take(part)) for part in parts(data.draw(chunkings(len(r.x))))]
    whole, total = given_to(mixture, r), sum(found[1:], found[0])
    assert_same(whole, total, len(r.x), reach(r.x, *used(whole, *found)))


@given(st.data())
def test_about_there_and_back_is_the_identity(data: st.DataObject) -> None:
    mixture, r, points = drawn(data)
    s = given_to(mixture, r)
    back = s.about(points).about(s.reference)
    np.testing.assert_array_equal(back.reference, s.reference)
    assert_same(s, back, len(r.x), reach(r.x, points, *used(s)))


@given(data=st.data())
def test_about_moves_exactly(data: st.DataObject, reference: Any) -> None:
    mixture, r, points = drawn(data)
    s = given_to(mixture, r)
    expected = reference.statistics(r.x, r.share, points, s.structure.name)
    far, unit = reach(r.x, points, *used(s)), 4 * (len(r.x) + 16) * EPS * max(r.weight.sum(), 1.0)
    for name, wanted, size in zip(SUMS, expected, (1.0, far, far**2), strict=True):
        found = getattr(s.about(points), name)
        np.testing.assert_allclose(found, wanted.astype(float), rtol=0, atol=unit * size)


@given(st.data())
def test_addition_is_associative_and_commutative_up_to_rounding(data: st.DataObject) -> None:
    mixture, r, points = drawn(data)
    lengths = data.draw(chunkings(len(r.x), 3, 3))
    a, b, c = (given_to(mixture, r.take(part)) for part in parts(lengths))
    n, far = len(r.x), reach(r.x, points, *used(a, b, c))
    assert_same(((a + b) + c).about(points), a + (b + c), n, far)
    assert_same((a + b).about(points), b + a, n, far)


@given(st.data())
def test_no_rows_add_nothing(data: st.DataObject) -> None:
    mixture, r, _ = drawn(data)
    s, nothing = given_to(mixture, r), given_to(mixture, r.take(slice(0)))
    for total in (s + nothing, nothing + s):
        np.testing.assert_array_equal(total.weight, s.weight)
        alive = s.weight > 0
        np.testing.assert_array_equal(total.means[alive], s.means[alive])
        assert total.n_rows == s.n_rows
        np.testing.assert_array_equal(total.about(s.reference).scatter, s.scatter)


def some(kind: str, part: slice = slice(40), weight: float = 1.0) -> Statistics:
    """Of 40 rows, or a part, in two components."""
    random = np.random.default_rng(0)
    x, w = random.normal(size=(40, 3)), random.choice([0.0, 0.25, 1.0, 7.0], size=40)
    resp = random.dirichlet(np.full(2, 0.5), size=40)
    return moments(STRUCTURES[kind], x[part], weight * w[part], resp[part], 2)


POINTS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])


@every_kind
def test_about_the_same_points_sums_add_plainly(kind: str) -> None:
    a, b = (some(kind, part).about(POINTS) for part in (slice(20), slice(20, 40)))
    total = a + b
    np.testing.assert_array_equal(total.reference, POINTS)
    for name in SUMS:
        np.testing.assert_array_equal(getattr(total, name), getattr(a, name) + getattr(b, name))


@every_kind
def test_a_sum_is_about_the_reference_of_the_heavier_side(kind: str) -> None:
    """An almost empty component has no reference worth keeping."""
    heavy, light = some(kind, slice(20)), some(kind, slice(20, 40), weight=1e-12)
    for total in (heavy + light, light + heavy):
        np.testing.assert_array_equal(total.reference, heavy.reference)


@every_kind
def test_scaled_weighs_every_row_alike(kind: str) -> None:
    s, heavier = some(kind), some(kind, weight=4.0)
    for name in (*SUMS, "log_likelihood", "total_weight", "n_rows"):
        # A power of two scales without rounding.
        np.testing.assert_array_equal(getattr(s.scaled(4.0), name), getattr(heavier, name))
    np.testing.assert_array_equal(s.scaled(4.0).about(POINTS).scatter, 4 * s.about(POINTS).scatter)
    np.testing.assert_array_equal(s.scaled(4.0).means, s.means)


def test_operations_return_new_values() -> None:
    a, b = some("diag", slice(20)), some("diag", slice(20, 40))
    before = pickle.dumps((a, b))
    _ = a + b, a.about(POINTS), a.scaled(0.5), a.means
    assert pickle.dumps((a, b)) == before
    with pytest.raises(FrozenInstanceError):
        a.weight = b.weight  # type: ignore[misc]


def test_the_mean_of_an_empty_component_is_its_reference() -> None:
    s = moments(DIAGONAL, np.array([[1.0], [3.0]]), None, np.array([1, 1]), 2)
    np.testing.assert_array_equal(s.weight, [0, 2])
    np.testing.assert_array_equal(s.means[1], [2.0])
    np.testing.assert_array_equal(s.means[0], s.reference[0])


@given(data=st.data())
def test_expectations_of_parts_add_up(data: st.DataObject) -> None:
    mixture = data.draw(mixtures())
    n = data.draw(st.integers(1, 300))
    x = draw_rows(mixture, n)
    found = [mixture.expectation(x[part]) for part in parts(data.draw(chunkings(n)))]
    whole, total = mixture.expectation(x), sum(found[1:], found[0])
    # The same rows give the same terms but for the last bits of vectorised functions.
    r = reach(x, mixture.means)
    unit = 4 * (n + 64 * mixture.n_features) * n * EPS
    for name, size in zip(SUMS, (1.0, r, r**2), strict=True):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name), rtol=0, atol=unit * size)
    np.testing.assert_allclose(total.log_likelihood, whole.log_likelihood, rtol=4 * (n + 16) * EPS)
    assert total.n_rows == whole.n_rows == n
