"""Statistics under given responsibilities, and the survey as the one-component case."""

from typing import Any

import numpy as np
import pytest

from daskgmm.model.kernels import PIECE
from daskgmm.model.moments import moments
from daskgmm.model.structure import STRUCTURES
from tests.structures import EPS, KINDS, draw_mixture, draw_rows

every_kind = pytest.mark.parametrize("kind", KINDS)


def assert_same_bits(a: Any, b: Any) -> None:
    for name in ("reference", "weight", "shift", "scatter", "total_weight", "n_rows"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@every_kind
def test_without_a_start_they_are_the_overall_moments(kind: str) -> None:
    x = draw_rows(draw_mixture(kind, offset=1e8))
    s = moments(STRUCTURES[kind], x)
    centred = x - x[0]  # exact
    np.testing.assert_allclose(s.means[0] - x[0], centred.mean(axis=0), rtol=0, atol=2 * EPS * 1e8)
    expected = KINDS[kind].pick(np.cov(centred.T, bias=True)[None])
    scatter = s.about(s.means).scatter
    np.testing.assert_allclose(scatter / s.weight[0], expected, rtol=1e-12, atol=1e-12 * abs(expected).max())


@every_kind
def test_labels_are_responsibilities_of_one(kind: str) -> None:
    """Of any number of rows, pieces and more; and rows of zero weight may carry any label."""
    random = np.random.default_rng(0)
    x, labels = random.normal(size=(PIECE + 7, 2)), random.integers(3, size=PIECE + 7)
    weight = random.choice([0.0, 1.0, 2.0], size=len(x))
    by_label = moments(STRUCTURES[kind], x, weight, labels, 3)
    assert_same_bits(by_label, moments(STRUCTURES[kind], x, weight, np.eye(3)[labels], 3))
    spoiled = np.where(weight == 0, np.where(labels == 0, -9, 99), labels)
    assert_same_bits(by_label, moments(STRUCTURES[kind], x, weight, spoiled, 3))
    weights = np.bincount(labels, weights=weight, minlength=3)
    np.testing.assert_array_equal(by_label.weight, weights)


@every_kind
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_first_row_that_is_no_number_is_no_reference(kind: str, bad: float) -> None:
    x = draw_rows(draw_mixture(kind, d=3))
    weight = np.where(np.arange(len(x)) < 2, 0.0, 1.0)
    spoiled = np.where(weight[:, None] == 0, bad, x)
    assert_same_bits(moments(STRUCTURES[kind], spoiled, weight), moments(STRUCTURES[kind], x, weight))
    nobody = moments(STRUCTURES[kind], spoiled[:2], weight[:2])
    assert np.isfinite(nobody.reference).all()
    assert (nobody.weight[0], nobody.n_rows) == (0, 0)


@every_kind
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_values_come_out_as_bad_values(kind: str, bad: float) -> None:
    x = draw_rows(draw_mixture(kind, d=5))
    assert np.isfinite(moments(STRUCTURES[kind], x).scatter).all()
    x[150, 1] = bad
    assert not np.isfinite(moments(STRUCTURES[kind], x).scatter).all()
