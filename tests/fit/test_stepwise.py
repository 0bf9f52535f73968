"""A stepwise run: its steps, its recursion, and what keeps it sound whatever comes."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm.compute.block import Block
from daskgmm.errors import DataError
from daskgmm.fit.recent import sample_rows
from daskgmm.fit.stepwise import Spread, StepRule, Stepwise, Watch, blend
from daskgmm.fit.tasks import Learn
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import FULL
from daskgmm.model.update import Regularised, Steady
from daskgmm.store.values import digest, pack, unpack
from tests.apart import MEANS, TRUTH, WEIGHTS, D, K, in_order, near, rows_of
from tests.structures import KINDS, matrices

RULE = StepRule(50, 0.6, 2.0, None)
EACH = pytest.mark.parametrize("kind", KINDS)


def begun(kind: str = "full", rows: float = 100.0, rule: StepRule = RULE, reg_covar: float = 0.0) -> Stepwise:
    return Stepwise.implied(near(kind), rows, reg_covar, rule)


def learnt(run: Stepwise, x: Any, weight: Any = None) -> Stepwise:
    return run.advance(run.task(Block(x, weight=weight)))


def assert_same_means(found: Any, wanted: Any, **tolerance: Any) -> None:
    tolerance = {"rtol": 1e-12, "atol": 1e-12} | tolerance
    np.testing.assert_allclose(found.weights, wanted.weights, **tolerance)
    np.testing.assert_allclose(found.means, wanted.means, **tolerance)


# Steps


@given(t=st.floats(0, 1e7), b=st.integers(1, 10_000), parts=st.integers(1, 5))
def test_a_half_life_forgets_by_rows_however_they_are_cut(t: float, b: int, parts: int) -> None:
    rule = StepRule(100, 0.6, 2.0, 1234.0)
    whole = 1 - rule.step(t, b * parts)
    cut = np.prod([1 - rule.step(t + i * b, b) for i in range(parts)])
    # Where γ is near 1, 1 − γ is known to the rounding of γ alone, some 1e-16, however small it is itself.
    np.testing.assert_allclose(whole, cut, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(1 - rule.step(t, 1234.0), 0.5, rtol=1e-14)


def test_full_batches_take_the_published_steps() -> None:
    for t in range(1, 50):
        np.testing.assert_allclose(RULE.step(50.0 * t, 50), (t + 2) ** -0.6, rtol=1e-12)
    # Ten batches of a tenth take the steps of one, up to the fall of the rule meanwhile.
    part = RULE.step(5000, 5)
    np.testing.assert_allclose(1 - (1 - part) ** 10, RULE.step(5000, 50), rtol=1e-12)


@pytest.mark.parametrize("offset", [1.0, 2.0, 50.0])
@pytest.mark.parametrize("decay", [0.51, 1.0])
def test_steps_are_shares(offset: float, decay: float) -> None:
    rule = StepRule(7, decay, offset, None)
    for before, rows in itertools.product([0, 1, 1e3, 1e12], [1e-3, 1, 1e3, 1e9]):
        assert 0 < rule.step(before, rows) <= 1
        assert 0 < rule.share(before + 1, rows) <= 1


def test_the_average_weighs_statistics_by_the_rows_before() -> None:
    # c_1 (1 - c_2) (1 - c_3) ... is the share of the first: of ∫ 2 u du over its rows.
    edges = np.array([100, 130, 400, 1000.0])
    shares = [RULE.share(a, b - a) for a, b in itertools.pairwise(edges)]
    kept = np.append(np.cumprod([1 - c for c in shares[:0:-1]])[::-1], 1.0)
    np.testing.assert_allclose(shares * kept, np.diff(edges**2) / 1000**2, rtol=1e-12)


@pytest.mark.parametrize("half_life", [None, 300.0])
def test_effective_rows_by_the_definition(half_life: float | None) -> None:
    rule = StepRule(50, 0.6, 2.0, half_life)
    run, random = begun(rule=rule), np.random.default_rng(0)
    now, average = np.full(100, 0.01), np.full(100, 0.01)  # the weight of every row so far
    for n in (1, 10, 3, 200, 50):
        weight = random.integers(1, 4, n)
        after, size = learnt(run, rows_of(n, n), weight.astype(float)), int(weight.sum())  # each counts as so many
        gamma = max(rule.step(run.clock, size), size / (size + 1 / (now**2).sum()))
        share = rule.share(run.clock, size)
        now = np.append((1 - gamma) * now, np.full(size, gamma / size))
        average = (1 - share) * np.append(average, np.zeros(size)) + share * now
        run = after
        np.testing.assert_allclose(run.spread.now, (now**2).sum(), rtol=1e-12)
        np.testing.assert_allclose(run.effective_rows, 1 / (average**2).sum(), rtol=1e-12)
    assert run.n_rows == 264


def test_effective_rows_of_a_half_life() -> None:
    run = begun(rows=10, rule=StepRule(50, 0.6, 2.0, 500.0))
    for i in range(400):
        run = learnt(run, rows_of(i, 25))
    gamma = 1 - 2 ** (-25 / 500)
    np.testing.assert_allclose(run.effective_rows, 25 * (2 - gamma) / gamma, rtol=1e-6)


def test_a_whole_step_leaves_nothing_of_the_spread_before() -> None:
    assert Spread(0.5, 0.5, 0.5).step(1.0, 1.0, 10.0) == Spread(0.1, 0.1, 0.1)


# The recursion


@EACH
def test_one_step_is_the_blend_of_moments(kind: str) -> None:
    run, x = begun(kind), rows_of(1, 40)
    after = learnt(run, x)
    gamma = RULE.step(100, 40)
    assert gamma > 40 / 140  # the rule's own, not that of the plain average
    old, batch = run.statistics, run.mixture.expectation(x)
    weight = (1 - gamma) * old.weight + gamma * batch.weight / 40
    means = (1 - gamma) * old.weight[:, None] * old.means + gamma * batch.weight[:, None] * batch.means / 40
    assert_same_means(after.mixture, Mixture(weight, means / weight[:, None], run.mixture.covariance))
    np.testing.assert_allclose(after.statistics.total_weight, 1, rtol=1e-14)
    # Second moments about the origin add up, whatever they were taken about.
    zero = np.zeros((K, D))
    scatter = (1 - gamma) * old.about(zero).scatter + gamma * batch.about(zero).scatter / 40
    np.testing.assert_allclose(after.statistics.about(zero).scatter, scatter, rtol=1e-11)


@EACH
def test_statistics_of_a_mixture_give_it_back(kind: str) -> None:
    wanted = near(kind)
    run = Stepwise.implied(wanted, 1e12, 0.0, RULE)
    # By the M-step of its statistics, not only as the mixture that it was given.
    for found in (run.mixture, run.published, Regularised()(run.mixture, run.statistics)):
        assert_same_means(found, wanted)
        np.testing.assert_allclose(found.covariance.values, wanted.covariance.values, rtol=1e-10)
    # Few rows, or none: the prior is what the mixture has, and moves nothing.
    again = learnt(begun(kind, rows=30), rows_of(0, 5), weight=np.full(5, 1e-12))
    np.testing.assert_allclose(again.mixture.covariance.values, wanted.covariance.values, rtol=1e-9)


def test_a_step_of_one_is_a_step_of_batch_em() -> None:
    x = rows_of(2, 4000)
    run = begun(rows=1e-9, rule=StepRule(1e-6, 1.0, 1.0, None))
    found, wanted = learnt(run, x), Regularised()(run.mixture, run.mixture.expectation(x))
    assert_same_means(found.mixture, wanted, rtol=1e-9, atol=1e-9)
    # The covariance has d + 1 pseudo-rows in it: less than a share of 1e-2.
    assert np.abs(found.mixture.covariance.values - wanted.covariance.values).max() < 0.01


@EACH
def test_far_from_zero_nothing_is_lost(kind: str) -> None:
    here, m = begun(kind), near(kind)
    far = Stepwise.implied(Mixture(m.weights, m.means + 1e6, m.covariance), 100, 0.0, RULE)
    for i in range(20):
        x = rows_of(i, 37)
        here, far = learnt(here, x), learnt(far, x + 1e6)
    for a, b in ((here.mixture, far.mixture), (here.published, far.published)):
        np.testing.assert_allclose(b.means - 1e6, a.means, atol=1e-8)
        np.testing.assert_allclose(b.covariance.values, a.covariance.values, rtol=1e-6, atol=1e-8)


def test_the_reference_follows_a_stream() -> None:
    run = begun(rule=StepRule(50, 0.6, 2.0, 100.0))
    for i in range(200):
        run = learnt(run, rows_of(i, 50) + 0.5 * i)
    for s in (run.statistics, run.average):
        assert np.abs(s.reference - s.means).max() < 2  # of 100 that the stream has moved


@EACH
@settings(max_examples=10)
@given(
    seed=st.integers(0, 99),
    half_life=st.sampled_from([None, 60.0]),
    sizes=st.lists(st.integers(1, 30), max_size=8),
)
def test_a_row_of_weight_two_is_two_rows(kind: str, seed: int, half_life: float | None, sizes: list[int]) -> None:
    """In all that a run knows, the prior and the sample of rows included."""
    rule = StepRule(50, 0.6, 2.0, half_life)
    one = other = begun(kind, 30, rule, 1e-6)
    random = np.random.default_rng(seed)
    for size in sizes:
        x, count = rows_of(int(random.integers(99)), size), random.integers(0, 4, size)
        one, other = learnt(one, x, count.astype(float)), learnt(other, np.repeat(x, count, axis=0))
        assert one.reseeded == other.reseeded == ()
    found, wanted = ((run.clock, run.bound, run.spread.now, run.spread.average) for run in (one, other))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    for a, b in ((one.mixture, other.mixture), (one.published, other.published)):
        assert_same_means(a, b, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(a.covariance.values, b.covariance.values, rtol=1e-9, atol=1e-9)


def test_rows_that_hardly_weigh_hardly_count() -> None:
    run = begun()
    after = learnt(run, rows_of(3, 30), np.full(30, 1e-9))
    np.testing.assert_allclose(after.mixture.means, run.mixture.means, atol=1e-7)
    assert after.clock > run.clock


def test_a_batch_of_no_weight_changes_nothing() -> None:
    run = begun()
    after = learnt(run, rows_of(0, 5), np.zeros(5))
    assert after.mixture is run.mixture
    assert after.statistics is run.statistics
    assert (after.clock, after.n_rows, after.n_batches) == (run.clock, 0, 1)


def test_blend_is_linear_and_its_counts_do_not_grow() -> None:
    run = begun()
    a, b = run.mixture.expectation(rows_of(1, 30)), run.mixture.expectation(rows_of(2, 50))
    found = blend(a, b, 0.25, run.mixture)
    np.testing.assert_allclose(found.weight, 0.75 * a.weight + 0.25 * b.weight, rtol=1e-13)
    assert found.n_rows == 0


def test_rows_up_to_a_place_are_left_out_of_the_next_batch_alone() -> None:
    run, x = begun(), rows_of(0, 60)
    begins = replace(run, after=(1, 9))
    blocks = [Block(x[i * 20 : i * 20 + 20], i, i * 20) for i in range(3)]
    after = begins.advance(begins.task(blocks[0]) + begins.task(blocks[1]) + begins.task(blocks[2]))
    assert_same_means(after.mixture, learnt(run, x[30:]).mixture)
    assert after.n_rows == 30
    assert_same_means(learnt(after, x).mixture, learnt(learnt(run, x[30:]), x).mixture)


# What keeps it sound


@pytest.mark.parametrize("half_life", [None, 500.0])
def test_a_tight_component_stays_tight(half_life: float | None) -> None:
    """Whatever lies beside it: what keeps small components safe is its own start."""
    values = np.array([100 * np.eye(D), 1e-4 * np.eye(D)])
    start = Mixture(np.array([0.9, 0.1]), np.array([[0.0, 0], [40, 40]]), FULL.form.of(FULL, values))
    run, random = Stepwise.implied(start, 100, 0.0, StepRule(12, 0.6, 2.0, half_life)), np.random.default_rng(0)
    for _ in range(300):
        x = np.where(random.random((10, 1)) < 0.9, 10 * random.normal(size=(10, D)), 40.0)
        run = learnt(run, x + 0.01 * random.normal(size=x.shape))
        assert run.mixture.covariance.values[1].trace() < 1e-3
    np.testing.assert_allclose(run.published.covariance.values[1], values[1], atol=3e-5)


def hard_rows() -> list[Any]:
    random = np.random.default_rng(0)
    return [
        np.zeros((1, D)),  # one row
        np.tile(MEANS[1], (500, 1)),  # the same row, from one component
        np.full((3, D), 1e8),  # far away
        np.column_stack([np.full(50, 3.0), random.normal(size=50)]),  # a constant column
        np.column_stack([np.full(5000, 3.0), random.normal(size=5000)]),
        np.zeros((2000, D)),
        rows_of(0, 2000),
    ]


@pytest.mark.parametrize(("kind", "reg_covar"), [*((kind, 0.0) for kind in KINDS), ("full", 1e-6)])
def test_whatever_comes_the_model_stays_usable(kind: str, reg_covar: float) -> None:
    run, some = begun(kind, 30, StepRule(12, 0.6, 2.0, 40.0), reg_covar), rows_of(1, 20)
    for x in hard_rows():
        for first in range(0, len(x), 10):
            run = learnt(run, x[first : first + 10])
            if first % 50 and first + 10 < len(x):
                continue
            for m in (run.mixture, run.published):
                assert np.isfinite(m.score_samples(some)).all()
                assert abs(m.weights.sum() - 1) < 1e-12
                assert (np.linalg.eigvalsh(matrices(m.covariance.values, kind, K, D)) > 0).all()
    assert run.mixture.score_samples(rows_of(2, 500)).mean() > -6


def with_an_idle_one(kind: str, rows: float = 100) -> Stepwise:
    means = np.array([MEANS[0], MEANS[1], [500.0, 500]])
    far = Mixture(np.array([0.5, 0.5 - 1e-9, 1e-9]), means, near(kind).covariance)
    return Stepwise.implied(far, rows, 0.0, RULE)


@EACH
def test_an_idle_component_goes_where_rows_are_not_expected(kind: str) -> None:
    run, x = with_an_idle_one(kind), rows_of(0, 4000)
    while not run.reseeded:
        first = int(run.n_rows)
        assert first <= 2 * sample_rows(K, D)
        run = learnt(run, x[first : first + 50])
    assert run.reseeded == (2,)
    assert run.published is run.mixture
    np.testing.assert_allclose(run.mixture.means[2], MEANS[2], atol=1)
    np.testing.assert_allclose(run.mixture.weights[2], WEIGHTS[2], atol=0.1)
    for first in range(int(run.n_rows), len(x), 50):
        run = learnt(run, x[first : first + 50])
        assert run.reseeded == ()  # one was enough
    np.testing.assert_allclose(run.published.means[in_order(run.published.means)], MEANS, atol=0.3)


@EACH
def test_a_run_from_a_file_goes_on_to_the_same(kind: str) -> None:
    run, x = with_an_idle_one(kind), rows_of(0, 800)
    for first in range(0, 400, 50):
        run = learnt(run, x[first : first + 50])
        # Also where it was just placed anew: its parameters are not the M-step of its statistics.
        arrays: dict[str, Any] = {}
        run, again = learnt(run, x[:9]), learnt(unpack(pack(run, arrays, "run"), arrays), x[:9])
        assert digest(again) == digest(run)
        np.testing.assert_array_equal(again.published.covariance.values, run.published.covariance.values)


def test_no_row_of_a_component_is_no_reason_to_move_it() -> None:
    """Where the others explain all rows, it stays for the rows that it was made for."""
    run = with_an_idle_one("full")
    two = replace(TRUTH, weights=np.array([0.6, 0.4, 0.0]))
    for i in range(60):
        run = learnt(run, two.sample(50, np.random.RandomState(i))[0])
        assert run.reseeded == ()
    np.testing.assert_array_equal(run.mixture.means[2], [500, 500])


@dataclass(frozen=True, eq=False)
class Spoilt(Steady):
    """An M-step of which one part is no number."""

    part: str = ""
    bad: float = np.nan

    def __call__(self, mixture: Mixture, statistics: Statistics) -> Mixture:
        m = super().__call__(mixture, statistics)
        if self.part == "means":
            return replace(m, means=one_spoilt(m.means, self.bad))
        return replace(m, covariance=replace(m.covariance, factor=one_spoilt(m.covariance.factor, self.bad)))


def one_spoilt(values: Any, bad: float) -> Any:
    return np.where(values == values.max(), bad, values)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["shift", "scatter", "log_likelihood", "means", "factor"])
def test_a_step_is_refused_unless_all_of_it_is_finite(part: str, bad: float) -> None:
    run = begun()
    batch, sample = run.task(Block(rows_of(0, 50)))
    assert run.advance((batch, sample)).clock == 150
    if part in ("means", "factor"):
        run = replace(run, update=Spoilt(part=part, bad=bad))
    elif part == "log_likelihood":
        batch = replace(batch, log_likelihood=bad)
    else:
        batch = replace(batch, **{part: one_spoilt(getattr(batch, part), bad)})
    with pytest.raises(DataError, match="too large"), np.errstate(invalid="ignore"):
        run.advance((batch, sample))


def test_squares_beyond_the_largest_number_are_refused() -> None:
    # The density of each row is a number, the sum of squares is not.
    wide = Mixture(np.full(K, 1 / K), MEANS, FULL.form.of(FULL, np.tile(1e300 * np.eye(D), (K, 1, 1))))
    run = Stepwise.implied(wide, 100, 0.0, RULE)
    found = run.task(Block(np.full((3, D), 1e155)))
    assert np.isfinite(found[0].log_likelihood)
    with pytest.raises(DataError, match="too large"):
        run.advance(found)


@pytest.mark.parametrize("weight", [1e-320, 1e308])
def test_weights_that_add_up_to_no_number_are_refused(weight: float) -> None:
    run = begun()
    with pytest.raises(DataError, match="Scale"), np.errstate(all="ignore"):
        learnt(run, rows_of(0, 5), np.full(5, weight))


def test_what_is_no_number_comes_out_of_the_task_as_none() -> None:
    x = rows_of(0, 5)
    x[3, 1] = np.nan
    statistics, _ = Learn(near("full"), 9, 0)(Block(x))
    assert not np.isfinite(statistics.log_likelihood)


def test_a_watch_knows_how_much_batches_scatter_and_tells_a_jump() -> None:
    random = np.random.default_rng(0)
    watch, drifts = Watch(-3.0), []
    for rows in random.integers(20, 500, size=300).tolist():
        watch = watch.after(-3 + 0.7 * random.normal() / np.sqrt(rows), rows, 0.02)
        drifts.append(watch.drift)
    settled = np.array(drifts[50:])
    np.testing.assert_array_equal(np.isnan(drifts), np.arange(300) < 9)  # known after ten, and one was before
    assert watch.variance == pytest.approx(0.49, rel=0.3)
    assert watch.mean == pytest.approx(-3, abs=0.02)
    assert (settled.mean(), settled.std()) == pytest.approx((0, 1), abs=0.25)
    assert abs(settled).max() < 5
    assert watch.after(-3.4, 400, 0.02).drift > 8
