"""E-steps and answers for rows that miss values, against dense algebra row by row."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm.compute.block import Block
from daskgmm.model.available import available, gathered
from daskgmm.model.background import Contaminated
from daskgmm.model.missing import Incomplete, completed, grouped
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.parts import Parts
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import STRUCTURES, structure_of
from daskgmm.model.update import Regularised
from tests.model import dense_missing
from tests.strategies import kinds, seeds
from tests.structures import EVERY, KINDS, draw_mixture, draw_rows, parameters

every_kind = pytest.mark.parametrize("kind", KINDS)


def counted(x: Any, weight: Any = None) -> Any:
    """Weights of rows as a block has them: rows without any value do not count."""
    return Block(x, weight=weight).with_gaps().weight


def gaps(x: Any, share: float, seed: int) -> Any:
    """The rows with so many values missing."""
    return np.where(np.random.default_rng([seed, 7]).random(x.shape) < share, np.nan, x)


@settings(max_examples=20)
@given(
    kind=kinds,
    k=st.integers(1, 3),
    d=st.integers(1, 5),
    seed=seeds,
    share=st.floats(0.05, 0.6),
    weighted=st.booleans(),
)
def test_em_is_that_of_the_definitions(kind: str, k: int, d: int, seed: int, share: float, weighted: bool) -> None:
    mixture = draw_mixture(kind, k, d, seed)
    x = gaps(draw_rows(mixture, 12, seed), share, seed)
    w = np.random.default_rng(seed).choice([0.0, 0.5, 2.0], 12) if weighted else np.ones(12)
    found = Incomplete(mixture).expectation(x, counted(x, w if weighted else None))
    after = Regularised(1e-3)(mixture, found)
    weights, means, values, ll = dense_missing.step(x, w, *parameters(mixture), kind)
    np.testing.assert_allclose(found.log_likelihood, float(ll), rtol=1e-11, atol=1e-11)
    if not found.weight.sum():
        return
    np.testing.assert_allclose(after.weights, np.array(weights, float), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(after.means, np.array(means, float), rtol=1e-10, atol=1e-10)
    structure = STRUCTURES[kind]
    dense = structure.stored(np.array(values, float), k, d)
    dense = dense + 1e-3 * structure.form.unit(dense.shape[-1])
    np.testing.assert_allclose(after.covariance.values, dense, rtol=1e-9, atol=1e-9)


def by_patterns(mixture: Mixture, x: Any, weight: Any) -> Statistics:
    """The statistics of rows that miss values, by the marginal mixture of each pattern: dense algebra."""
    k, d = mixture.means.shape
    structure, reference = mixture.covariance.structure, mixture.means
    sums = [np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d))]
    totals = np.zeros(4)
    values = np.broadcast_to(mixture.covariance.matrices(d), (k, d, d))
    for rows, seen in grouped(x):
        rows = rows[weight[rows] > 0]
        w, own = weight[rows], mixture if len(seen) == d else Parts.of(mixture, seen).marginal
        part = np.asarray(x[np.ix_(rows, seen)], np.float64)
        density, resp = own.score_samples(part), own.responsibilities(part) * w[:, None]
        totals += w @ density, 0.0, w.sum(), len(rows)
        for j, whole in enumerate(values):
            lost = np.setdiff1d(np.arange(d), seen)
            gain = np.linalg.solve(whole[np.ix_(seen, seen)], whole[seen])  # of all features, given those seen
            y = (part - reference[j, seen]) @ gain
            left = whole - whole[:, seen] @ gain
            sums[0][j] += resp[:, j].sum()
            sums[1][j] += resp[:, j] @ y
            sums[2][j] += (resp[:, j, None] * y).T @ y + resp[:, j].sum() * left
            log_det = np.linalg.slogdet(2 * np.pi * left[np.ix_(lost, lost)])[1]
            totals[1] -= 0.5 * resp[:, j].sum() * (log_det + len(lost))
    scatter = structure.condensed(sums[2])
    return Statistics(structure, reference, sums[0], sums[1], scatter, totals[0], totals[2], totals[3], totals[1])


@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize(("k", "d", "share"), [(1, 2, 0.4), (3, 5, 0.02), (9, 8, 0.8), (17, 12, 0.4)])
def test_statistics_are_those_of_the_patterns(k: int, d: int, share: float, dtype: str) -> None:
    # Far from 0, where float32 does not hold the means; a row without a value, and rows without weight.
    for kind in EVERY:
        mixture = draw_mixture(kind, k, d, offset=1e6 / 3)
        x = gaps(draw_rows(mixture, 300), share, 2).astype(dtype)
        x[[3, 200]] = np.nan
        weight = counted(x, np.random.default_rng(0).choice([0.0, 1.0, 3.0], 300))
        found = Incomplete(mixture).expectation(x, weight)
        same_statistics(found, by_patterns(mixture, x, weight), 1e-11 if dtype == "f8" else 3e-5)


def same_statistics(found: Statistics, expected: Statistics, tolerance: float) -> None:
    """Check sums of the same rows, about the same points."""
    expected = expected.about(found.reference)
    assert found.n_rows == expected.n_rows
    for name in ("total_weight", "log_likelihood", "unseen", "weight", "shift", "scatter"):
        a, b = getattr(found, name), getattr(expected, name)
        scale = np.abs(getattr(expected, "scatter" if name == "shift" else name)).max()
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_each_row_may_miss_others(kind: str) -> None:
    # More patterns than a tile has room for, of more features than a word has bits.
    mixture = draw_mixture(kind, 2, 70)
    x = draw_rows(mixture, 400)
    random = np.random.default_rng(0)
    for row in x:
        row[random.permutation(70)[: random.integers(70)]] = np.nan
    found = Incomplete(mixture).expectation(x)
    same_statistics(found, by_patterns(mixture, x, np.ones(400)), 1e-10)


def test_many_patterns_of_few_rows_each() -> None:
    mixture = draw_mixture("full", 4, 12)
    x = gaps(draw_rows(mixture, 8000), 0.3, 1)
    x = np.where(np.isnan(x[np.random.default_rng(0).integers(1000, size=8000)]), np.nan, np.nan_to_num(x))
    weight = counted(x, np.ones(8000))
    assert len(list(grouped(x))) > 600
    same_statistics(Incomplete(mixture).expectation(x, weight), by_patterns(mixture, x, weight), 1e-11)


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_a_background_is_as_dense_as_what_rows_have_says(kind: str) -> None:
    plain = draw_mixture(kind, 3, 4)
    x = gaps(draw_rows(plain, 500), 0.4, 2)
    weight = counted(x, np.random.default_rng(0).choice([0.0, 1.0, 3.0], 500))
    low, high = np.nanmin(x, axis=0), np.nanmax(x, axis=0)
    mixture = Contaminated(0.8 * plain.weights, plain.means, plain.covariance, low, high)
    found = Incomplete(mixture).expectation(x, weight)
    own, there = Incomplete(plain), ~np.isnan(x)
    inside = 0.8 * np.exp(own.answer(x, "score_samples")[0])
    outside = 0.2 / np.where(there, high - low, 1.0).prod(axis=1)
    expected = by_patterns(plain, x, weight * inside / (inside + outside))
    totals = float(weight @ np.log(inside + outside)), float(weight.sum()), int((weight > 0).sum())
    expected = replace(expected, log_likelihood=totals[0], total_weight=totals[1], n_rows=totals[2])
    same_statistics(found, expected, 1e-11)
    x[0] = np.inf, np.nan, 0.0, 0.0  # as far as can be, and yet no row of the background
    assert not np.isfinite(
        Incomplete(mixture).expectation(x, np.ones(500) - np.isnan(x).all(axis=1)).log_likelihood
    )


@pytest.mark.parametrize("name", ["VEI", "EVI", "VEE", "EVV", "EEV", "VEV", "factors 1"])
def test_what_is_expected_has_the_structure_of_the_mixture(name: str) -> None:
    # The marginals of related components may have nothing in common, and the M-step asks the statistics.
    structure, loose = structure_of(name), structure_of(name).loose
    plain = draw_mixture(loose.name, 3, 4)
    mixture = Mixture(plain.weights, plain.means, structure.imposed(plain.covariance, plain.weights))
    x = gaps(draw_rows(plain, 60), 0.4, 1)
    incomplete = Incomplete(mixture)
    for found in (incomplete.expectation(x), incomplete.expectation(x[:30]) + incomplete.expectation(x[30:])):
        assert found.structure is structure
        after = Regularised(1e-3)(mixture, found)
        assert after.covariance.structure is structure
        after.covariance.check()


@every_kind
def test_rows_that_miss_nothing_have_the_same_bits(kind: str) -> None:
    mixture = draw_mixture(kind, 3, 4)
    x = draw_rows(mixture, 500)
    a, b = mixture.expectation(x), Incomplete(mixture).expectation(x)
    for name in ("weight", "shift", "scatter", "log_likelihood", "n_rows"):
        assert np.asarray(getattr(a, name)).tobytes() == np.asarray(getattr(b, name)).tobytes()
    np.testing.assert_array_equal(mixture.score_samples(x), Incomplete(mixture).answer(x, "score_samples")[0])


@every_kind
def test_float32_rows_lose_what_float32_does(kind: str) -> None:
    mixture = draw_mixture(kind, 3, 5)
    x = gaps(draw_rows(mixture, 400), 0.3, 0).astype("f4")
    a, b = (Incomplete(mixture).expectation(rows) for rows in (x, x.astype("f8")))
    assert a.log_likelihood != b.log_likelihood
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-3, atol=1e-2)


@settings(max_examples=20)
@given(kind=kinds, seed=seeds)
def test_statistics_of_a_concatenation_are_the_sum(kind: str, seed: int) -> None:
    mixture = draw_mixture(kind, 2, 3, seed)
    x = gaps(draw_rows(mixture, 90, seed), 0.4, seed)
    whole, first, second = (Incomplete(mixture).expectation(y, counted(y)) for y in (x, x[:31], x[31:]))
    both = first + second
    for name in ("weight", "shift", "scatter", "log_likelihood", "total_weight", "n_rows"):
        np.testing.assert_allclose(getattr(both, name), getattr(whole, name), rtol=1e-10, atol=1e-10)


@every_kind
def test_answers_are_those_of_the_marginals(kind: str) -> None:
    mixture = draw_mixture(kind, 3, 4)
    x = gaps(draw_rows(mixture, 60), 0.4, 1)
    x[7] = np.nan
    answers = {q: Incomplete(mixture).answer(x, q)[0] for q in ("labels", "score_samples", "responsibilities")}
    for i, row in enumerate(x):
        seen = np.flatnonzero(~np.isnan(row))
        if not len(seen):
            assert answers["score_samples"][i] == 0
            np.testing.assert_array_equal(answers["responsibilities"][i], mixture.weights)
            continue
        own = Parts.of(mixture, seen).marginal
        for question, found in answers.items():
            np.testing.assert_allclose(
                found[i], own.answer(row[None, seen], question)[0][0], rtol=1e-12, atol=1e-15
            )
    assert Incomplete(mixture).entropies(x).shape == (60,)
    x[3, 2] = np.inf
    assert not Incomplete(mixture).answer(x, "labels")[1]
    assert not Incomplete(mixture).impute(x)[1]


@every_kind
def test_missing_values_are_imputed_by_mean_or_draw(kind: str) -> None:
    mixture = draw_mixture(kind, 2, 3)
    row = draw_rows(mixture, 1)[0]
    x = np.tile(row, (20_000, 1))
    x[:, [0, 2]] = np.nan
    rest = Parts.of(mixture, np.array([1])).conditional(row[[1]])
    mean, _ = Incomplete(mixture).impute(x[:2])
    np.testing.assert_allclose(mean[0], [*(rest.weights @ rest.means)[:1], row[1], (rest.weights @ rest.means)[1]])
    drawn, _ = Incomplete(mixture).impute(x, np.random.default_rng(0))
    own = rest.score_samples(rest.sample(20_000, np.random.RandomState(0))[0])
    theirs = rest.score_samples(drawn[:, [0, 2]])
    assert abs(own.mean() - theirs.mean()) < 4 * own.std() * np.sqrt(2 / 20_000)
    complete = draw_rows(mixture, 5)
    np.testing.assert_array_equal(Incomplete(mixture).impute(complete)[0], complete)
    nothing = np.full((3, 3), np.nan)
    np.testing.assert_allclose(
        Incomplete(mixture).impute(nothing)[0], np.tile(mixture.weights @ mixture.means, (3, 1))
    )
    assert np.isfinite(Incomplete(mixture).impute(nothing, np.random.default_rng(0))[0]).all()


@pytest.mark.parametrize("d", [1, 8, 9, 63, 64, 65, 130])
def test_rows_are_grouped_by_what_they_have(d: int) -> None:
    x = gaps(np.zeros((300, d)), 1 / d, d)
    x[5] = np.nan
    rows = []
    for numbers, seen in grouped(x):
        rows += numbers.tolist()
        there = np.zeros(d, bool)
        there[seen] = True
        np.testing.assert_array_equal(~np.isnan(x[numbers]), np.tile(there, (len(numbers), 1)))
    assert sorted(rows) == [i for i in range(300) if not np.isnan(x[i]).all()]


@every_kind
@pytest.mark.parametrize("k", [1, 3])
def test_available_moments_are_those_of_each_feature(kind: str, k: int) -> None:
    x = gaps(1e3 + draw_rows(draw_mixture(kind, 3, 4), 200), 0.3, 2)
    weight = np.random.default_rng(0).choice([0.0, 1.0, 3.0], 200)
    labels = np.random.default_rng(1).integers(k, size=200)
    parts = available(x[:77], weight[:77], labels[:77], k) + available(x[77:], weight[77:], labels[77:], k)
    structure = STRUCTURES[kind]
    found = gathered(parts, structure, k)
    means, variances, total = (
        np.empty((k, 4)),
        np.empty((k, 4)),
        np.array([weight[labels == j].sum() for j in range(k)]),
    )
    for j in range(k):
        for f in range(4):
            has = (labels == j) & ~np.isnan(x[:, f])
            means[j, f] = np.average(x[has, f], weights=weight[has])
            variances[j, f] = np.average((x[has, f] - means[j, f]) ** 2, weights=weight[has])
    np.testing.assert_allclose(found.means, means, rtol=1e-13)
    np.testing.assert_allclose(found.weight, total)
    if structure.shared:
        variances = np.average(variances, axis=0, weights=total)[None]
    shown = structure.form.diagonals(found.scatter) / (total.sum() if structure.shared else total[:, None])
    variances = variances.mean(axis=1, keepdims=True) if structure.isotropic else variances
    np.testing.assert_allclose(shown, variances, rtol=1e-9)
    complete = moments(structure, np.nan_to_num(x), weight, labels, k)
    np.testing.assert_allclose(
        gathered(available(np.nan_to_num(x), weight, labels, k), structure, k).means, complete.means
    )


def test_rows_are_completed_by_what_goes_with_what_is_missing() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=4000)
    whole = np.column_stack(
        [5 + first, -2 + first + 0.1 * random.normal(size=4000), 1e4 * random.normal(size=4000)]
    )
    x = gaps(whole, 0.3, 3)
    x[:, 2] = np.where(np.arange(4000) == 9, x[:, 2], x[:, 2])
    found = completed(x, None, np.zeros(3))
    there = ~np.isnan(x)
    np.testing.assert_array_equal(found[there], x[there])
    lost = ~there[:, 1] & there[:, 0]
    assert np.sqrt(np.mean((found[lost, 1] - whole[lost, 1]) ** 2)) < 0.15  # of a standard deviation of 1
    only = np.column_stack([whole[:, 0], np.full(4000, np.nan)])
    np.testing.assert_allclose(completed(only, None, np.array([0.0, 7.0]))[:, 1], 7.0)


def test_regressions_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture: Mixture = draw_mixture("full", 2, 6)
    x = gaps(draw_rows(mixture, 300), 0.5, 0)
    whole = Incomplete(mixture).answer(x, "score_samples")[0]
    fresh = draw_mixture("full", 2, 6)
    monkeypatch.setattr("daskgmm.model.missing.KEPT_BYTES", 10_000)
    again = Incomplete(fresh).answer(x, "score_samples")[0]
    assert 0 < len(vars(fresh)["_patterns"]) < len(vars(mixture)["_patterns"])
    np.testing.assert_array_equal(again, whole)


@given(kind=kinds, seed=seeds)
@settings(max_examples=20)
def test_statistics_know_the_entropy_of_what_is_there(kind: str, seed: int) -> None:
    mixture = draw_mixture(kind, 3, 3, seed)
    x = gaps(draw_rows(mixture, 50, seed), 0.4, seed)
    weight = np.random.default_rng(seed).choice([0.0, 1.0, 3.0], 50) * ~np.isnan(x).all(axis=1)
    incomplete = Incomplete(mixture)
    found = mixture.entropy(incomplete.expectation(x, weight))
    np.testing.assert_allclose(found, weight @ incomplete.entropies(x), rtol=1e-9, atol=1e-9)
