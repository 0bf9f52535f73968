"""Rows with errors of their own: laws of their E-step, and agreement with the definitions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from daskgmm.model import kernels
from daskgmm.model.missing import Incomplete
from daskgmm.model.mixture import Mixture
from daskgmm.model.noisy import Noisy, indefinite
from daskgmm.model.statistics import Statistics
from daskgmm.model.update import Regularised
from tests.model import dense_noisy
from tests.structures import KINDS, draw_mixture, draw_rows, parameters

SUMS = ("weight", "shift", "scatter", "log_likelihood", "total_weight", "n_rows")


def errors(n: int, d: int, full: bool, seed: int = 0, scale: float = 1.0) -> Any:
    """Variances (n, d), or covariances (n, d, d); those of some rows are 0, or have no inverse."""
    random = np.random.default_rng([seed, d])
    if not full:
        return scale * random.gamma(1.0, size=(n, d)) * (random.random((n, 1)) > 0.1)
    a = random.normal(size=(n, d, d)) * (random.random((n, 1, d)) > 0.2)
    return scale * a @ np.swapaxes(a, 1, 2)


def assert_same(found: Statistics, expected: Statistics, rtol: float = 1e-12) -> None:
    expected = expected.about(found.reference)
    for name in SUMS:
        a, b = (np.asarray(getattr(s, name)) for s in (found, expected))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1.0, np.abs(b).max()), err_msg=name)


CASES = [(kind, d, full) for kind in KINDS for d in (1, 2, 6) for full in (False, True)]


@pytest.mark.parametrize(("kind", "d", "full"), CASES)
def test_a_step_is_that_of_the_definitions(kind: str, d: int, full: bool) -> None:
    mixture = draw_mixture(kind, 3, d)
    x = draw_rows(mixture, 60)
    noise, weight = errors(60, d, full), np.random.default_rng(1).choice([0.0, 1.0, 2.5], size=60)
    x[5::7, 0] = np.nan
    weight[np.isnan(x).all(axis=1)] = 0
    found = Noisy(mixture, noise, partial=True).expectation(x, weight)
    weights, means, values = parameters(mixture)
    expected = dense_noisy.step(x, noise, weight, weights, means, values, kind)
    after = Regularised(0.0)(mixture, found)
    assert found.log_likelihood == pytest.approx(float(expected[3]), rel=1e-12)
    shape = KINDS[kind].shape(3, d)
    for mine, theirs in zip(parameters(after), expected, strict=False):
        np.testing.assert_allclose(
            mine.reshape(shape) if mine is after.covariance.values else mine,
            theirs.astype(float),
            rtol=1e-11,
            atol=1e-12,
        )


@pytest.mark.parametrize(("kind", "d", "full"), CASES)
def test_no_errors_are_no_change(kind: str, d: int, full: bool) -> None:
    mixture = draw_mixture(kind, 3, d)
    x, weight = draw_rows(mixture, 500), np.random.default_rng(2).random(500)
    asked = Noisy(mixture, np.zeros((500, d, d) if full else (500, d)))
    assert_same(asked.expectation(x, weight), mixture.expectation(x, weight))
    for question, tolerance in (("labels", 0.0), ("score_samples", 1e-12), ("responsibilities", 1e-12)):
        (found, sound), (expected, _) = asked.answer(x, question), mixture.answer(x, question)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
        assert sound
    np.testing.assert_allclose(asked.entropies(x), mixture.entropies(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_add_up_whatever_the_parts(kind: str, full: bool) -> None:
    n, d = kernels.PIECE + 77, 3
    mixture = draw_mixture(kind, 3, d)
    x, noise, weight = draw_rows(mixture, n), errors(n, d, full), np.random.default_rng(3).random(n)
    whole = Noisy(mixture, noise).expectation(x, weight)
    parts = [
        Noisy(mixture, noise[part]).expectation(x[part], weight[part])
        for part in (np.s_[:100], np.s_[100:4000], np.s_[4000:])
    ]
    assert_same(parts[0] + (parts[1] + parts[2]), whole)
    twice = Noisy(mixture, np.repeat(noise[:90], 2, axis=0)).expectation(np.repeat(x[:90], 2, axis=0))
    assert_same(replace(twice, n_rows=90), Noisy(mixture, noise[:90]).expectation(x[:90], np.full(90, 2.0)))


@pytest.mark.parametrize("kind", KINDS)
def test_variances_are_diagonal_covariances_and_all_types_of_rows_agree(kind: str) -> None:
    mixture = draw_mixture(kind, 3, 4)
    x, noise = draw_rows(mixture, 300), errors(300, 4, full=False)
    plain = Noisy(mixture, noise).expectation(x)
    assert_same(Noisy(mixture, noise[:, :, None] * np.eye(4)).expectation(x), plain)
    single, whole = x.astype("f4"), np.rint(x).astype("i2")
    for rows in (single, whole, np.asfortranarray(x)):
        assert_same(Noisy(mixture, noise).expectation(rows), Noisy(mixture, noise).expectation(rows.astype("f8")))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_has_infinite_errors(kind: str, full: bool) -> None:
    # Without errors else, the statistics of rows that miss values are those that patterns give.
    mixture = draw_mixture(kind, 3, 4)
    x = draw_rows(mixture, 300)
    x[np.random.default_rng(4).random(x.shape) < 0.3] = np.nan
    x[np.isnan(x).all(axis=1), 0] = 0.0
    noise = np.zeros((300, 4, 4) if full else (300, 4))
    noise[np.isnan(x)] = np.nan
    asked, by_patterns = Noisy(mixture, noise, partial=True), Incomplete(mixture)
    assert_same(asked.expectation(x), by_patterns.expectation(x), 1e-11)
    for question in ("labels", "score_samples", "responsibilities"):
        np.testing.assert_allclose(asked.answer(x, question)[0], by_patterns.answer(x, question)[0], atol=1e-11)


def test_tight_components_far_from_zero_keep_their_digits() -> None:
    # A condition of 1e8, at 1e6 standard deviations from 0, with errors far below and far above what is there.
    random = np.random.default_rng(5)
    values = np.diag([1.0, 1e-4, 1e-8])[None]
    structure = draw_mixture("full", 1, 3).covariance.structure
    mixture = Mixture(np.ones(1), np.array([[1e2, 1e-2, -1.0]]), structure.form.of(structure, values))
    noise = np.repeat([1e-12, 1e-3, 1e3], 40)[:, None] * random.random((120, 3))
    x = mixture.means + random.normal(size=(120, 3)) * np.sqrt(values[0].diagonal() + noise)
    found = Noisy(mixture, noise).expectation(x)
    expected = dense_noisy.step(x, noise, np.ones(120), *parameters(mixture), "full")
    after = Regularised(0.0)(mixture, found)
    scale = np.sqrt(values[0].diagonal())
    unit = np.outer(scale, scale)
    np.testing.assert_allclose(after.covariance.values[0] / unit, expected[2][0].astype(float) / unit, atol=1e-9)


def test_rows_that_cannot_be_are_told() -> None:
    mixture = draw_mixture("full", 2, 2)
    x, noise = draw_rows(mixture, 5), np.tile(np.eye(2), (5, 1, 1))
    there = np.zeros(x.shape, bool)
    assert not indefinite(noise, there).any()
    noise[3] = [[1.0, 3.0], [3.0, 1.0]]
    noise[4] = [[1.0, 1.0], [1.0, 1.0]]
    assert indefinite(noise, there).tolist() == [False, False, False, True, False]
    assert not indefinite(noise, ~there).any()
    assert not indefinite(noise[:, 0], there).any()
    noise[3] = -100 * np.eye(2)
    assert not Noisy(mixture, noise).answer(x, "labels")[1]
    assert np.isnan(Noisy(mixture, noise).expectation(x).log_likelihood)
    x[0, 0] = np.nan
    assert not Noisy(mixture, noise[:3]).answer(x[:3], "responsibilities")[1]
    assert Noisy(mixture, noise[:3], partial=True).answer(x[:3], "responsibilities")[1]
