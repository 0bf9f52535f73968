"""Starts from the row sample of the survey: none costs a pass of its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import dask
import numpy as np
import pytest
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits

from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import Rows, as_rows
from daskgmm.errors import CollapseError
from daskgmm.fit import moves, starts
from daskgmm.fit.recipe import OnlineRecipe, Recipe, Start
from daskgmm.fit.run import EM
from daskgmm.fit.starts import STARTS, Ground, polished, rows_seen, seed, widened
from daskgmm.fit.stepwise import StepRule
from daskgmm.fit.survey import Survey, Threshold
from daskgmm.fit.sweep import climb
from daskgmm.fit.tasks import Examine
from daskgmm.model.matrices import Matrices
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.structure import FULL, STRUCTURES
from daskgmm.model.update import maximise
from daskgmm.store.values import digest
from tests.structures import KINDS

METHODS = [*STARTS, "subsample"]
CENTRES = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
LABELS = np.arange(600) % 3
X = CENTRES[LABELS] + np.random.default_rng(0).normal(size=(600, 2))
X_OF_EIGHT = 4 * np.random.default_rng(1).normal(size=(8, 2))[np.arange(600) % 8] + X / 9


def survey(x: Any = X, weight: Any = None, size: int = 10**6, kind: str = "full", labels: Any = None) -> Survey:
    rows = as_rows(x, weight=weight, labels=labels, block_size=1600)
    return engine_for(rows).reduce(rows, Examine(STRUCTURES[kind], 3, 0, Threshold(size)))


def test_distances_are_taken_from_a_row_where_zero_is_a_thousand_deviations_away() -> None:
    ground: Any = Ground
    x = np.array([[750.0, 1500.0]]) + np.array([[-1.0], [1.0]])
    np.testing.assert_array_equal(ground(None, None, x, None).origin, [0.0, 1499.0])


def seeds(
    method: str, kind: str = "full", *, found: Survey | None = None, random: int = 0, **settings: Any
) -> list[Mixture]:
    recipe = Recipe(structure=STRUCTURES[kind], k=3, init_params=method, **settings)
    return seed(recipe, survey(kind=kind) if found is None else found, np.random.RandomState(random))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [60, 10**6])
def test_every_seed_is_a_mixture(method: str, kind: str, size: int) -> None:
    (mixture,) = seeds(method, kind, found=survey(size=size, kind=kind))
    np.testing.assert_allclose(mixture.weights.sum(), 1, rtol=1e-12)
    assert mixture.means.shape == (3, 2)
    shown = mixture.covariance.structure.shown(mixture.covariance.values, 3, 2)
    assert shown.shape == KINDS[kind].shape(3, 2)
    assert np.all(np.isfinite(mixture.score_samples(X)))
    inside = (X.min(axis=0) <= mixture.means) & (mixture.means <= X.max(axis=0))
    assert inside.all()


@pytest.mark.parametrize("method", METHODS)
def test_same_random_state_same_seed(method: str) -> None:
    small = survey(size=60)
    a, b = (seeds(method, found=small)[0] for _ in range(2))
    (c,) = seeds(method, found=small, random=1)
    np.testing.assert_array_equal(a.means, b.means)
    np.testing.assert_array_equal(a.covariance.values, b.covariance.values)
    if method.startswith("random"):  # the others find the same clusters
        assert not np.array_equal(a.means, c.means)


def test_good_seeds_find_separate_clusters() -> None:
    for method in ("kmeans", "k-means++", "subsample"):
        (mixture,) = seeds(method, found=survey(size=90))
        nearest = np.linalg.norm(mixture.means[:, None] - CENTRES, axis=2)
        assert np.all(nearest.min(axis=0) < 0.6)  # 30 rows of unit spread each: an error of 0.2


@pytest.mark.parametrize("method", STARTS)
def test_n_init_seeds_differ(method: str) -> None:
    mixtures = seeds(method, n_init=4)
    assert len(mixtures) == 4
    if method.startswith("random"):
        assert len({m.means.tobytes() for m in mixtures}) == 4
    else:  # clusters this clear are found from almost everywhere, in any order
        assert len({m.means.tobytes() for m in mixtures}) > 1


def test_of_a_subsample_the_first_goes_on_and_the_best_two_of_the_others() -> None:
    assert len(seeds("subsample")) == 1
    found = survey(X_OF_EIGHT, size=100, kind="diag")
    (alone,) = seeds("subsample", "diag", found=found)
    first, *others = seeds("subsample", "diag", found=found, n_init=6)
    np.testing.assert_array_equal(first.means, alone.means)
    sample, _ = found.sample.points()
    scores = [mixture.score_samples(sample).mean() for mixture in others]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)


@pytest.fixture
def climbs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The rows and the runs of each climb, as it begins."""
    told: list[tuple[int, int]] = []

    def spy(rows: Rows, runs: Sequence[EM], *how: Any, **more: Any) -> list[EM]:
        told.append((rows.n_rows or 0, len(runs)))
        return climb(rows, runs, *how, **more)

    for module in (moves, starts):
        monkeypatch.setattr(module, "climb", spy)
    return told


def test_the_best_of_the_trials_goes_on(monkeypatch: pytest.MonkeyPatch, climbs: list[tuple[int, int]]) -> None:
    tried: list[Mixture] = []

    def noted(start: Callable[..., Mixture]) -> Callable[..., Mixture]:
        def call(*arguments: Any) -> Mixture:
            tried.append(start(*arguments))
            return tried[-1]

        return call

    for name in ("k-means++", "kmeans"):
        monkeypatch.setitem(STARTS, name, noted(STARTS[name]))
    found = survey(size=60)
    *_, mixture = seeds("subsample", n_init=4, found=found)
    assert len(tried) == 8
    assert climbs.count((60, 2)) == 4  # in each chain one of either kind
    sample, _ = found.sample.points()
    likelihood = mixture.score_samples(sample).mean()
    assert all(likelihood >= trial.score_samples(sample).mean() for trial in tried)


@pytest.mark.parametrize(("gains", "rests"), [(True, True), (False, False), (False, True)])
def test_where_moves_gain_or_a_start_does_not_rest_the_first_chain_is_the_best_of_several(
    monkeypatch: pytest.MonkeyPatch, gains: bool, rests: bool
) -> None:
    began: list[EM] = []
    several = gains or not rests

    def gaining(run: EM, *_: Any) -> EM:
        """As if the second had gained most."""
        began.append(run)
        return replace(run, trace=(2.0 if len(began) == 2 else 1.0,)) if gains else run

    def raced(runs: Sequence[EM]) -> EM:
        level = 2.0 if len(began) == 1 else 1.0
        return replace(runs[0], trace=(level - (1e-4 if rests else 0.1), level), tol=0.0)

    monkeypatch.setattr(starts, "improved", gaining)
    monkeypatch.setattr(starts, "best", raced)
    monkeypatch.setattr(starts, "_settled", lambda run, rows: run)
    with dask.config.set(scheduler="synchronous"):  # one after the other
        (mixture,) = seeds("subsample", found=survey(size=60))
        assert len(began) == (starts.TRIES if several else 1)
        assert mixture is began[1 if several else 0].mixture
        began.clear()
        seeds("subsample", found=survey(size=60), n_init=3)  # each further one is a single try
        assert len(began) == (starts.TRIES + 2 if several else 3)
        began.clear()
        seeds("subsample", found=survey(size=16))  # of 17 parameters
        assert len(began) == 1


def test_threads_change_no_bit_of_a_start() -> None:
    found = survey(X_OF_EIGHT, size=100, kind="diag")
    each = []
    for settings in ({"scheduler": "synchronous"}, {"num_workers": 1}, {"num_workers": 4}):
        with dask.config.set(settings):
            each.append(digest(tuple(seeds("subsample", "diag", found=found, n_init=4))))
    assert len({*each}) == 1


def test_polishing_goes_further_than_em_in_as_many_passes() -> None:
    x = np.random.default_rng(2).normal(size=(600, 2)) * [1.0, 3.0]
    (mixture,) = seeds("random_from_data", found=survey(x))
    run = EM(mixture, Recipe(structure=FULL, k=3).update(1e-6), 1e-7, 3)
    settled = starts._settled(run, as_rows(x))
    (plain,) = climb(as_rows(x), [run], settled.n_iter)
    assert settled.n_iter <= starts.SAMPLE_ITER
    assert settled.lower_bound > plain.lower_bound + 1e-4


def test_the_best_start_goes_on_on_more_rows_but_a_half_at_most(
    monkeypatch: pytest.MonkeyPatch, climbs: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(starts, "TRIAL_ROWS", 30)
    monkeypatch.setattr(starts, "sample_size", lambda k, d, few=50: few)
    x = np.tile(X, (2, 1)) + np.random.default_rng(1).normal(size=(1200, 2))
    for size, larger in ((900, [600]), (100, [100]), (30, [])):
        found = survey(x, size=size)
        (mixture,) = seeds("subsample", found=found)
        assert list(dict.fromkeys(rows for rows, _ in climbs)) == [30, *larger]
        climbs.clear()
        subsample = Recipe(structure=FULL, k=3, init_params="subsample")
        assert rows_seen(subsample, found) == max(30, *larger, 0)
        assert rows_seen(replace(subsample, init_params="kmeans"), found) == 0
        if larger:  # EM there is at its end
            recipe = Recipe(structure=FULL, k=3)
            sample, _ = found.sample.first(larger[0]).points()
            after = recipe.update(1e-6)(mixture, mixture.expectation(sample))
            gain = after.score_samples(sample).mean() - mixture.score_samples(sample).mean()
            assert 0 <= gain < 1e-3


def test_an_online_start_is_polished_on_the_whole_sample(climbs: list[tuple[int, int]]) -> None:
    """By the same chain as a batch start: one of each kind, the better of them, and moves."""
    rule = StepRule(100, 0.6, 2.0, None)
    one: list[dict[str, Any]] = [{"init_params": "random_from_data"}, {"start": Start(means=CENTRES)}]
    for settings, tried in ({}, 2), (one[0], 1), (one[1], 1):
        recipe = OnlineRecipe(structure=FULL, k=3, rule=rule, **settings)
        mixture, ground = polished(recipe, survey(size=90), np.random.RandomState(0))
        assert climbs[0] == (90, tried)
        assert climbs[-1] == (90, 1)
        climbs.clear()
        assert len(ground.x) == 90
        if tried == 2:
            nearest = np.linalg.norm(mixture.means[:, None] - CENTRES, axis=2)
            assert np.all(nearest.min(axis=0) < 0.6)


@pytest.mark.parametrize("method", METHODS)
def test_starts_that_collapse_are_left_out(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others may do better; where there is none, the fit says why."""
    calls = [0]

    def failing(always: bool) -> Callable[[Ground, Any], Mixture]:
        def start(ground: Ground, random: Any) -> Mixture:
            calls[0] += 1
            if always or calls[0] == 1:
                raise CollapseError("A component collapsed.", 0)
            return Mixture(np.full(3, 1 / 3), CENTRES, Matrices.of(FULL, np.stack([np.eye(2)] * 3)))

        return start

    for always in (False, True):
        for name in STARTS:
            monkeypatch.setitem(STARTS, name, failing(always))
        calls[0] = 0
        if always:
            with pytest.raises(CollapseError, match="collapsed"):
                seeds(method, n_init=4)
        else:
            assert len(seeds(method, n_init=4)) == (1 if method == "subsample" else 3)


@pytest.mark.parametrize("method", ["kmeans", "k-means++", "random_from_data"])
def test_other_starts_are_found_on_the_whole_sample(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large: an online fit's is as large as the user asks."""
    monkeypatch.setattr(starts, "sample_size", lambda k, d, few=50: few)
    sizes: list[int] = []
    start = STARTS[method]

    def spy(ground: Ground, random: Any) -> Mixture:
        sizes.append(len(ground.x))
        return start(ground, random)

    monkeypatch.setitem(STARTS, method, spy)
    seeds(method)
    assert sizes == [600]


def test_auto_is_kmeans_where_the_sample_holds_all(climbs: list[tuple[int, int]]) -> None:
    half = np.where(np.arange(600) < 300, 1.0, 0.0)
    for options, tried in (
        ({"size": 600}, False),
        ({"size": 599}, True),
        ({"size": 300, "weight": half}, False),  # rows of no weight do not count
    ):
        found = survey(**options)
        (auto,) = seeds("auto", found=found)
        assert bool(climbs) == tried
        climbs.clear()
        (named,) = seeds("subsample" if tried else "kmeans", found=found)
        climbs.clear()
        np.testing.assert_array_equal(auto.means, named.means)


def test_kmeans_is_scikit_learns() -> None:
    labels = KMeans(3, n_init=1, random_state=np.random.RandomState(0)).fit(X).labels_
    (mixture,) = seeds("kmeans")
    expected = np.stack([X[labels == j].mean(axis=0) for j in range(3)])
    np.testing.assert_allclose(mixture.means, expected, rtol=1e-12)
    np.testing.assert_allclose(mixture.weights, np.bincount(labels) / 600, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_weights_draw_the_seeds(method: str) -> None:
    # Rows of the first cluster count a million times as much as the others.
    weight = np.where(LABELS == 0, 1e6, 1.0)
    (mixture,) = seeds(method, found=survey(weight=weight, size=60))
    overall = mixture.weights @ mixture.means
    assert np.all(abs(overall) < 0.8)


def test_seeding_runs_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    # scikit-learn's k-means differs in its last bits between thread counts.
    pools: list[int] = []
    fit = KMeans.fit

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        pools.extend(pool["num_threads"] for pool in threadpool_info())
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(KMeans, "fit", spy)
    with threadpool_limits(2):
        seeds("kmeans")
    assert set(pools) == {1}


# Given parts


def test_a_whole_start_is_taken_as_it_is() -> None:
    covariance = Matrices.of(FULL, np.stack([np.eye(2)] * 3))
    start = Start(np.array([0.2, 0.3, 0.5]), CENTRES, covariance)
    (mixture,) = seeds("kmeans", start=start, n_init=5)
    assert mixture.weights is start.weights
    assert mixture.means is start.means
    assert mixture.covariance is covariance


@pytest.mark.parametrize("method", METHODS)
def test_given_means_need_one_seed_only(method: str) -> None:
    shifted = CENTRES + 0.3
    start = Start(means=shifted)
    (mixture,) = seeds(method, start=start, n_init=3)
    if method != "subsample":  # which goes on from them
        np.testing.assert_array_equal(mixture.means, shifted)
    # Weights and covariances belong to those means, in their order.
    np.testing.assert_allclose(mixture.weights, 1 / 3, atol=0.02)
    assert np.all(np.linalg.norm(mixture.means - CENTRES, axis=1) < 1)


def test_labels_start_with_one_m_step() -> None:
    flipped = 2 - LABELS
    (mixture,) = seeds("kmeans", found=survey(labels=flipped), n_init=3)
    expected = np.stack([X[flipped == j].mean(axis=0) for j in range(3)])
    np.testing.assert_allclose(mixture.means, expected, rtol=1e-12, atol=1e-13)
    cov = np.stack([np.cov(X[flipped == j].T, bias=True) + 1e-6 * np.eye(2) for j in range(3)])
    np.testing.assert_allclose(mixture.covariance.values, cov, rtol=1e-11)
    (weighted,) = seeds("kmeans", found=survey(labels=flipped), start=Start(weights=np.array([0.1, 0.2, 0.7])))
    np.testing.assert_array_equal(weighted.weights, [0.1, 0.2, 0.7])
    np.testing.assert_array_equal(weighted.means, mixture.means)


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_that_no_row_has_takes_the_overall_moments(kind: str) -> None:
    (mixture,) = seeds("kmeans", kind, found=survey(kind=kind, labels=LABELS % 2))
    np.testing.assert_allclose(mixture.means[2], X.mean(axis=0), rtol=1e-12)
    assert mixture.weights[2] == 0
    assert np.all(np.isfinite(mixture.covariance.values))


def test_fewer_distinct_rows_than_components() -> None:
    x = np.repeat([[0.0, 0.0], [5.0, 5.0]], 30, axis=0)
    for method in ("k-means++", "random", "random_from_data"):
        (mixture,) = seeds(method, found=survey(x))
        assert np.all(np.isfinite(mixture.score_samples(x)))


@pytest.mark.parametrize("method", METHODS)
def test_no_start_reads_the_rows_again(method: str, reads: Any) -> None:
    counted = reads(X, (100, 2))
    found = survey(counted.array)
    assert counted.total == 6
    seeds(method, found=found)
    assert counted.total == 6


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_other_rows_of_a_cluster_are_not_far_from_the_few_that_were_seen(kind: str) -> None:
    random, structure, d = np.random.default_rng(0), STRUCTURES[kind], 16
    few, bulk, others = (random.normal(size=(n, d)) for n in (20, 5000, 2000))
    found = moments(structure, np.concatenate([few, bulk]), None, np.repeat([0, 1], [20, 5000]), 2)
    mixture = maximise(found, found.means, found.scatter, 0.0)
    after = widened(mixture, len(few) + len(bulk))

    def apart(of: Mixture) -> float:
        return float(np.mean([np.square(of.covariance.whiten(x - of.means[0], 0)).sum() for x in others])) / d

    assert apart(after) < 1.5
    assert apart(mixture) > (3 if kind == "full" else 1) * apart(after)
    np.testing.assert_array_equal(after.covariance.values[1], mixture.covariance.values[1])
    assert widened(mixture, 100 * 5020) is mixture


def test_what_all_components_share_no_few_rows_have_told() -> None:
    (mixture,) = seeds("kmeans", "tied")
    assert widened(mixture, 4) is mixture
