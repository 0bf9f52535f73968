"""Online EM: the recursion and its laws, the windows that mini-batches come from, and what keeps it sound."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import dask
import dask.array as da
import dask.threaded
import numpy as np
import pytest
from dask.local import get_sync
from distributed import Client, LocalCluster
from hypothesis import given
from hypothesis import strategies as st

from daskgmm.compute import window as module
from daskgmm.compute.engine import Engine, engine_for
from daskgmm.compute.rows import Block, as_rows, read_at
from daskgmm.compute.window import Selection, Window, windows
from daskgmm.errors import DataError
from daskgmm.fit import archive
from daskgmm.fit.online import Expectation, learn, step
from daskgmm.fit.start import HeadOf, hold_out, positions
from daskgmm.fit.stepwise import Spread, StepRule, Stepwise, blend, steady
from daskgmm.fit.survey import Surveyor, Threshold
from daskgmm.model.covariance import STRUCTURES, Full
from daskgmm.model.mixture import Mixture, moments

K, D = 3, 2
KINDS = list(STRUCTURES)
RULE = StepRule(50, 0.6, 2.0, None)
MEANS = np.array([[0.0, 0], [8, 0], [0, 8]])


def rows_of(seed: int, n: int) -> Any:
    random = np.random.default_rng(seed)
    return MEANS[random.choice(K, n, p=[0.5, 0.3, 0.2])] + random.normal(size=(n, D))


def mixture(kind: str = "full") -> Mixture:
    structure = STRUCTURES[kind]
    x = rows_of(99, 500)
    labels = np.argmin(((x[:, None] - MEANS) ** 2).sum(axis=2), axis=1)
    s = moments(structure, x, None, labels, K)
    start = np.ones(structure.shape(K, D)) if kind != "full" else np.tile(np.eye(D), (K, 1, 1))
    start = np.eye(D) if kind == "tied" else start
    return Mixture(np.full(K, 1 / K), MEANS, structure.of(start)).maximise(s)


def begun(kind: str = "full", rows: float = 100.0, reg_covar: float = 0.0) -> Stepwise:
    return Stepwise.implied(mixture(kind), rows, reg_covar)


def learnt(run: Stepwise, x: Any, rule: StepRule = RULE, weight: Any = None) -> Stepwise:
    squares = len(x) if weight is None else float((weight**2).sum())
    return run.advance(run.mixture.expectation(x, weight), squares, rule)


# Steps


@given(t=st.floats(0, 1e7), b=st.integers(1, 10_000), parts=st.integers(1, 5))
def test_a_half_life_forgets_by_rows_however_they_are_cut(t: float, b: int, parts: int) -> None:
    rule = StepRule(100, 0.6, 2.0, 1234.0)
    whole = 1 - rule.step(t, b * parts)
    cut = np.prod([1 - rule.step(t + i * b, b) for i in range(parts)])
    np.testing.assert_allclose(whole, cut, rtol=1e-9)  # 1 - γ may be as small as 1e-12
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
    rule, run = StepRule(50, 0.6, 2.0, half_life), begun(rows=100)
    random = np.random.default_rng(0)
    now, average = np.full(100, 0.01), np.full(100, 0.01)  # the weight of every row so far
    for size in (1, 10, 3, 200, 50):
        weight = random.uniform(0.5, 2, size)
        after = learnt(run, rows_of(size, size), rule, weight)
        gamma = max(
            rule.step(run.clock, weight.sum()),
            weight.sum() / (weight.sum() + 1 / (now**2).sum()),
        )
        share = rule.share(run.clock, weight.sum())
        now = np.append((1 - gamma) * now, gamma * weight / weight.sum())
        average = (1 - share) * np.append(average, np.zeros(size)) + share * now
        run = after
        np.testing.assert_allclose(run.spread.now, (now**2).sum(), rtol=1e-12)
        np.testing.assert_allclose(run.effective_rows, 1 / (average**2).sum(), rtol=1e-12)
    assert run.n_rows == 264


def test_effective_rows_of_a_half_life() -> None:
    run, rule = begun(rows=10), StepRule(50, 0.6, 2.0, 500.0)
    for i in range(400):
        run = learnt(run, rows_of(i, 25), rule)
    gamma = 1 - 2 ** (-25 / 500)
    np.testing.assert_allclose(run.effective_rows, 25 * (2 - gamma) / gamma, rtol=1e-6)


# The recursion


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_the_blend_of_moments(kind: str) -> None:
    run, x = begun(kind), rows_of(1, 40)
    after = learnt(run, x)
    gamma = RULE.step(100, 40)
    assert gamma > 40 / 140
    batch = run.mixture.expectation(x)
    weight = (1 - gamma) * run.statistics.weight + gamma * batch.weight / 40
    means = (1 - gamma) * run.statistics.weight[:, None] * run.statistics.means
    means = (means + gamma * batch.weight[:, None] * batch.means / 40) / weight[:, None]
    np.testing.assert_allclose(after.mixture.weights, weight, rtol=1e-12)
    np.testing.assert_allclose(after.mixture.means, means, rtol=1e-12)
    np.testing.assert_allclose(after.statistics.total_weight, 1, rtol=1e-14)
    # Second moments about the origin add up, whatever they were taken about.
    zero = np.zeros((K, D))
    scatter = (1 - gamma) * run.statistics.about(zero).scatter + gamma * batch.about(zero).scatter / 40
    np.testing.assert_allclose(after.statistics.about(zero).scatter, scatter, rtol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_of_a_mixture_give_it_back(kind: str) -> None:
    wanted = mixture(kind)
    run = Stepwise.implied(wanted, 1e12, 0.0)  # so many rows that the prior is nothing
    for found in (run.mixture, run.published):
        np.testing.assert_allclose(found.weights, wanted.weights, rtol=1e-12)
        np.testing.assert_allclose(found.means, wanted.means, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.covariance.values, wanted.covariance.values, rtol=1e-10)


def test_a_step_of_one_is_a_step_of_batch_em() -> None:
    x = rows_of(2, 4000)
    run = begun(rows=1e-9)
    found = learnt(run, x, StepRule(1e-6, 1.0, 1.0, None))
    wanted = run.mixture.maximise(run.mixture.expectation(x))
    np.testing.assert_allclose(found.mixture.means, wanted.means, rtol=1e-9, atol=1e-9)
    # The covariance has d + 1 pseudo-rows in it: less than a share of 1e-2.
    assert np.abs(found.mixture.covariance.values - wanted.covariance.values).max() < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_far_from_zero_nothing_is_lost(kind: str) -> None:
    near, m = begun(kind), mixture(kind)
    far = Stepwise.implied(Mixture(m.weights, m.means + 1e6, m.covariance), 100, 0.0)
    for i in range(20):
        x = rows_of(i, 37)
        near, far = learnt(near, x), learnt(far, x + 1e6)
    for a, b in ((near.mixture, far.mixture), (near.published, far.published)):
        np.testing.assert_allclose(b.means - 1e6, a.means, atol=1e-8)
        np.testing.assert_allclose(b.covariance.values, a.covariance.values, rtol=1e-6, atol=1e-8)


def test_the_reference_follows_a_stream() -> None:
    run, rule = begun(), StepRule(50, 0.6, 2.0, 100.0)
    for i in range(400):
        run = learnt(run, rows_of(i, 50) + 0.5 * i, rule)
    for s in (run.statistics, run.average):
        assert np.abs(s.reference - s.means).max() < 2  # of 200 that the stream has moved


def test_rows_of_weight_two_count_twice() -> None:
    x = rows_of(3, 30)
    one, other = learnt(begun(), x, weight=np.full(30, 2.0)), learnt(begun(), np.repeat(x, 2, axis=0))
    assert one.clock == other.clock == 160
    # A repeated row is two for the effective number, a heavy one is not: the prior differs, and nothing else.
    np.testing.assert_allclose(one.statistics.weight, other.statistics.weight, rtol=1e-12)
    np.testing.assert_allclose(one.mixture.means, other.mixture.means, rtol=1e-12)


def test_rows_that_hardly_weigh_hardly_count() -> None:
    run, x = begun(), rows_of(3, 30)
    after = learnt(run, x, weight=np.full(30, 1e-9))
    np.testing.assert_allclose(after.mixture.means, run.mixture.means, atol=1e-7)
    assert after.clock > run.clock


def test_a_batch_of_no_weight_changes_nothing() -> None:
    run = begun()
    after = learnt(run, rows_of(0, 5), weight=np.zeros(5))
    assert after.mixture is run.mixture
    assert after.statistics is run.statistics
    assert (after.clock, after.n_rows, after.n_batches) == (run.clock, 0, 1)


def test_blend_is_linear_and_its_counts_do_not_grow() -> None:
    run = begun()
    a, b = run.mixture.expectation(rows_of(1, 30)), run.mixture.expectation(rows_of(2, 50))
    found = blend(a, b, 0.25, run.mixture)
    np.testing.assert_allclose(found.weight, 0.75 * a.weight + 0.25 * b.weight, rtol=1e-13)
    assert found.n_rows == 0


# What keeps it sound


@pytest.mark.parametrize("kind", KINDS)
def test_the_prior_vanishes_and_leaves_weights_and_means(kind: str) -> None:
    m = mixture(kind)
    s = m.expectation(rows_of(5, 3000))
    plain = m.maximise(s)
    distances = []
    for rows in (30, 3e3, 3e5, 3e9):
        found = steady(m, s, rows, 0.0)
        np.testing.assert_allclose(found.weights, plain.weights, rtol=1e-13)
        np.testing.assert_allclose(found.means, plain.means, rtol=1e-12, atol=1e-12)
        distances.append(np.abs(found.covariance.values - plain.covariance.values).max())
    assert distances[-1] < 1e-7
    if kind != "tied":  # one covariance has all the rows
        assert distances[0] > 10 * distances[1] > 100 * distances[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reg_covar", [0.0, 1e-6])
def test_whatever_comes_the_model_stays_usable(kind: str, reg_covar: float) -> None:
    run, rule = begun(kind, 30, reg_covar), StepRule(12, 0.6, 2.0, 40.0)
    random = np.random.default_rng(0)
    hard = [
        np.zeros((1, D)),  # one row
        np.tile(MEANS[1], (500, 1)),  # the same row, from one component
        np.full((3, D), 1e8),  # far away
        np.column_stack([np.full(50, 3.0), random.normal(size=50)]),  # a constant column
        np.column_stack([np.full(5000, 3.0), random.normal(size=5000)]),
        np.zeros((2000, D)),
        rows_of(0, 2000),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for x in hard:
            for first in range(0, len(x), 10):
                run = learnt(run, x[first : first + 10], rule)
                for m in (run.mixture, run.published):
                    assert run.finite
                    assert np.isfinite(m.score_samples(rows_of(1, 20))).all()
                    assert abs(m.weights.sum() - 1) < 1e-12
                    assert (m.covariance.variances(m.covariance.values, K, D) > 0).all()
    assert run.mixture.score_samples(rows_of(2, 500)).mean() > -6


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_component_is_placed_anew(kind: str) -> None:
    m = mixture(kind)
    far = Mixture(np.array([0.5, 0.5 - 1e-9, 1e-9]), np.array([MEANS[0], MEANS[1], [500.0, 500]]), m.covariance)
    run = learnt(Stepwise.implied(far, 100, 0.0), rows_of(0, 50))
    assert run.reseeded == (2,)
    assert run.mixture.weights.min() > 0.1
    (heavy,) = np.flatnonzero(np.isclose(run.mixture.weights[:2], run.mixture.weights[2], rtol=1e-12))
    parted = np.linalg.norm(run.mixture.means[2] - run.mixture.means[heavy])
    variances = run.mixture.covariance.variances(run.mixture.covariance.values, K, D)[heavy]
    np.testing.assert_allclose(parted, np.sqrt(variances.max()), rtol=1e-9)
    for i in range(60):
        run = learnt(run, rows_of(i, 50))
    assert run.reseeded == ()
    found = run.mixture.means[np.argsort(run.mixture.means @ [1.0, 2.0])]
    np.testing.assert_allclose(found, MEANS, atol=0.6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_from_a_file_publishes_the_same(kind: str) -> None:
    # Just placed anew: its parameters are not the M-step of its statistics.
    m = mixture(kind)
    far = Mixture(np.array([0.5, 0.5 - 1e-9, 1e-9]), np.array([MEANS[0], MEANS[1], [500.0, 500]]), m.covariance)
    run = learnt(Stepwise.implied(far, 100, 0.0), rows_of(0, 50))
    assert run.reseeded
    arrays: dict[str, Any] = {}
    again = archive.unpack(archive.pack(run, arrays), arrays)
    np.testing.assert_array_equal(again.published.covariance.values, run.published.covariance.values)
    np.testing.assert_array_equal(again.published.means, run.published.means)


def test_a_run_is_finite_only_if_all_of_it_is() -> None:
    run = learnt(begun(), rows_of(0, 50))
    assert run.finite
    for bad in (np.nan, np.inf):
        s, m = run.statistics, run.mixture
        spoilt = [
            replace(run, statistics=replace(s, shift=np.where(s.shift == s.shift.max(), bad, s.shift))),
            replace(run, statistics=replace(s, scatter=np.where(s.scatter == s.scatter.max(), bad, s.scatter))),
            replace(run, mixture=replace(m, means=np.where(m.means == m.means.max(), bad, m.means))),
            replace(
                run,
                mixture=replace(
                    m, covariance=replace(m.covariance, factor=np.full_like(m.covariance.factor, bad))
                ),
            ),
        ]
        assert [other.finite for other in spoilt] == [False] * 4


def test_a_step_to_what_is_not_finite_is_refused() -> None:
    # Each density is a number, the sums of squares are beyond the largest.
    wide = Mixture(np.full(K, 1 / K), MEANS, Full.of(np.tile(1e300 * np.eye(D), (K, 1, 1))))
    run, rows = Stepwise.implied(wide, 100, 0.0), as_rows(np.full((3, D), 1e155))
    found, squares = Expectation(run.mixture)(Block(np.full((3, D), 1e155), None, None, 0, 0))
    assert np.isfinite(found.log_likelihood)
    assert not run.advance(found, squares, RULE).finite
    with pytest.raises(DataError, match="too large"):
        step(engine_for(rows), rows, run, RULE, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prior_is_of_rows_that_spread_as_all_do(kind: str) -> None:
    m = mixture(kind)
    s = m.expectation(rows_of(5, 300))
    centred = s.about(s.means)
    found = steady(m, s, 60, 0.0).covariance.values
    if kind == "tied":
        np.testing.assert_allclose(found, centred.scatter / 300, rtol=1e-12)
        return
    within = centred.scatter.sum(axis=0) / 300
    extra = (D + 1) * 300 / 60  # three of sixty effective rows
    for j in range(K):
        wanted = (centred.scatter[j] + extra * within) / (s.weight[j] + extra)
        np.testing.assert_allclose(found[j], wanted, rtol=1e-12)


def test_few_effective_rows_alone_kill_nothing() -> None:
    run = learnt(begun(rows=2), rows_of(0, 2), StepRule(1, 0.6, 2.0, 1.0))
    assert run.mixture.weights.min() < run.spread.now  # less than one effective row
    assert run.reseeded == ()


def test_rare_is_not_dead() -> None:
    m = mixture()
    rare = Mixture(np.array([0.6, 0.395, 0.005]), m.means, m.covariance)
    run = Stepwise.implied(rare, 2000, 0.0)
    assert learnt(run, MEANS[0] + np.zeros((10, D))).reseeded == ()


def test_refused_values_name_the_block() -> None:
    x = rows_of(0, 100)
    x[57, 1] = np.nan
    rows = as_rows(da.from_array(x, chunks=(10, D)))
    with pytest.raises(DataError, match="NaN: block 5, row"):
        step(Engine(get_sync), rows, begun(), RULE, rows)


# Windows


def dealt(x: Any, seed: int = 0, budget: int = 10**9, weight: Any = None, chosen: Any = None) -> list[Any]:
    """Rows of every mini-batch of a pass in steps of 10."""
    rows, engine, found = as_rows(x, weight), Engine(get_sync), []
    chosen = chosen or Selection()
    for number, blocks in enumerate(windows(rows, chosen, budget, seed)):
        held = Window.load(engine, rows, blocks, chosen, number)
        for first in range(0, held.n_rows, 10):
            batch = held.batch(first, min(first + 10, held.n_rows))
            graph = dict(batch.graph)
            tasks = {("t", i): (partial(read_at, i), batch.key, *batch.parts(i)) for i in range(batch.n_blocks)}
            parts = get_sync({**graph, **tasks}, list(tasks))
            found.append(np.concatenate([part.x for part in parts]))
    return found


@given(
    n=st.integers(1, 300),
    chunk=st.integers(1, 120),
    budget=st.sampled_from([1, 200, 10**9]),
    seed=st.integers(0, 9),
)
def test_a_pass_visits_every_row_once(n: int, chunk: int, budget: int, seed: int) -> None:
    x = da.from_array(np.arange(n)[:, None].astype(float), chunks=(chunk, 1))
    visited = np.concatenate(dealt(x, seed, budget))
    assert sorted(visited[:, 0].tolist()) == list(range(n))


@pytest.mark.parametrize("sizes", ["known", "unknown"])
def test_only_chosen_rows_of_positive_weight_are_visited(sizes: str) -> None:
    n, weight = 100, np.ones(100)
    weight[::7] = 0
    x = da.from_array(np.arange(n)[:, None].astype(float), chunks=(30, 1))
    out = (11, 12, 95)
    if sizes == "unknown":
        x = x[da.from_array(np.ones(n, bool), chunks=30)]
        weight = da.from_array(weight, chunks=30)
        out = (11, 12, (3 << 40) + 5)
    found = np.concatenate(dealt(x, weight=weight, chosen=Selection(out=out)))
    wanted = {i for i in range(n) if i % 7} - {11, 12, 95}
    assert sorted(found[:, 0].tolist()) == sorted(wanted)


def test_a_range_of_rows_reads_no_other_block() -> None:
    rows = as_rows(da.from_array(np.arange(100.0)[:, None], chunks=(10, 1)))
    chosen = Selection(25, 61)
    assert sorted(itertools.chain(*windows(rows, chosen, 10**9, 0))) == [2, 3, 4, 5, 6]
    x = da.from_array(np.arange(100.0)[:, None], chunks=(10, 1))
    found = np.concatenate(dealt(x, chosen=chosen))
    assert sorted(found[:, 0].tolist()) == list(range(25, 61))


def test_mini_batches_of_sorted_rows_look_alike() -> None:
    x = np.repeat(np.arange(4.0), 2500)[:, None]
    shares = np.array([[np.mean(part == j) for j in range(4)] for part in windows_of(x, 500)])
    np.testing.assert_allclose(shares, 0.25, atol=0.08)  # four standard deviations of a random draw
    assert np.std(shares) > 0  # random, not strided


def windows_of(x: Any, size: int) -> list[Any]:
    parts = np.concatenate(dealt(da.from_array(x, chunks=(1000, 1))))
    return [parts[first : first + size] for first in range(0, len(parts), size)]


@pytest.mark.parametrize("period", [2, 3, 8, 32, 64])
def test_mini_batches_of_periodic_rows_look_alike(period: int) -> None:
    x = (np.arange(9600) % period == 0).astype(float)[:, None]
    shares = [part.mean() for part in windows_of(x, 960)]
    np.testing.assert_allclose(shares, 1 / period, atol=4 * np.sqrt(1 / period / 960))


def test_windows_are_even_over_the_data() -> None:
    rows = as_rows(da.from_array(np.zeros((128, 1)), chunks=(1, 1)))
    plan = windows(rows, Selection(), 8 * 16, 3)
    assert [len(part) for part in plan] == [16] * 8
    for part in plan:
        np.testing.assert_array_equal(np.array(part) // 8, np.arange(16))  # one of every eight neighbours
    assert plan != windows(rows, Selection(), 8 * 16, 4)


def test_blocks_are_read_once() -> None:
    counts: dict[int, int] = {}

    def read(block: Any, block_info: Any = None) -> Any:
        number = block_info[0]["chunk-location"][0]
        counts[number] = counts.get(number, 0) + 1
        return block

    x = da.from_array(rows_of(0, 1000), chunks=(50, D)).map_blocks(read, dtype=float)
    rows = as_rows(x)
    counts.clear()
    *_, (run, _, _) = learn(Engine(get_sync), rows, begun(), RULE, Selection(), 4000, 0)
    assert run.n_rows == 1000
    assert run.n_batches > 10
    assert counts == dict.fromkeys(range(20), 1)


@pytest.mark.timeout(120)
def test_threads_and_a_client_give_the_same_bits() -> None:
    x = rows_of(0, 3000)

    def run() -> Stepwise:
        rows = as_rows(da.from_array(x, chunks=(100, D)))
        *_, (found, _, _) = learn(engine_for(rows), rows, begun(), RULE, Selection(), 20_000, 5)
        return found

    with dask.config.set(scheduler="synchronous"):
        one = run()
    two = run()
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        three = run()
    for other in (two, three):
        np.testing.assert_array_equal(other.published.covariance.values, one.published.covariance.values)
        np.testing.assert_array_equal(other.statistics.scatter, one.statistics.scatter)
        assert other.spread == one.spread


# Starts


def test_held_out_rows_are_part_of_neither() -> None:
    x = rows_of(0, 5000)
    rows = as_rows(da.from_array(x, chunks=(500, D)))
    survey = Engine(get_sync).reduce(rows, Surveyor(Full, K, 3, Threshold(400)))
    kept, held = hold_out(survey)
    a, b, both = positions(kept.sample), positions(held), positions(survey.sample)
    assert sorted(a + b) == list(both)
    assert len(b) == 40
    np.testing.assert_array_equal(held.points()[0], x[list(b)])
    np.testing.assert_array_equal(kept.sample.points()[0], x[list(a)])


@given(n=st.integers(1, 60), chunk=st.integers(1, 20), size=st.integers(1, 80))
def test_the_head_is_that_of_the_whole(n: int, chunk: int, size: int) -> None:
    x = np.arange(n)[:, None].astype(np.float32)
    weight = np.where(np.arange(n) % 3 == 1, 0.0, 2.0)
    rows = as_rows(da.from_array(x, chunks=(chunk, 1)), weight)
    head = Engine(get_sync).reduce(rows, HeadOf(size))
    wanted = np.flatnonzero(weight)[:size]
    assert head.x[:, 0].tolist() == wanted.tolist()
    assert [(b * chunk + r) for b, r in head.places.tolist()] == wanted.tolist()


def test_spread_is_a_value() -> None:
    assert Spread(0.5, 0.5, 0.5).step(1.0, 1.0, 0.1) == Spread(0.1, 0.1, 0.1)
    assert module.GROUP & (module.GROUP - 1) == 0
