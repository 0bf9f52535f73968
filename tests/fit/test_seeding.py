"""Starts from the row sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
from dask.local import get_sync
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits

from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import as_rows
from daskgmm.errors import CollapseError
from daskgmm.fit import seeding
from daskgmm.fit.seeding import Start, resolve, sample_size, seed, survey_size
from daskgmm.fit.survey import Survey, Surveyor, Threshold
from daskgmm.model.covariance import STRUCTURES, Full
from daskgmm.model.mixture import Mixture

KINDS = sorted(STRUCTURES)
METHODS = ["kmeans", "k-means++", "random", "random_from_data", "subsample"]
RANDOM = np.random.default_rng(0)
CENTRES = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
LABELS = np.arange(600) % 3
X = CENTRES[LABELS] + RANDOM.normal(size=(600, 2))


def survey(x: Any = X, weight: Any = None, size: int = 10**6, kind: str = "full", start: Any = None) -> Survey:
    rows = as_rows(x, weight, start, block_size=1600)
    found: Survey = Engine(get_sync).reduce(rows, Surveyor(STRUCTURES[kind], 3, 0, Threshold(size)))
    return found


def seeds(
    method: str, kind: str = "full", *, found: Survey | None = None, start: Start | None = None, **options: Any
) -> list[Mixture]:
    settings = {"n_init": 1, "tol": 1e-3, "reg_covar": 1e-6, "random": np.random.RandomState(0)} | options
    return seed(
        survey(kind=kind) if found is None else found,
        STRUCTURES[kind],
        3,
        method,
        Start() if start is None else start,
        settings["n_init"],
        settings["random"],
        settings["tol"],
        settings["reg_covar"],
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [60, 10**6])
def test_every_seed_is_a_mixture(method: str, kind: str, size: int) -> None:
    (mixture,) = seeds(method, kind, found=survey(size=size, kind=kind))
    np.testing.assert_allclose(mixture.weights.sum(), 1, rtol=1e-12)
    assert mixture.means.shape == (3, 2)
    assert mixture.covariance.values.shape == STRUCTURES[kind].shape(3, 2)
    assert np.all(np.isfinite(mixture.score_samples(X)))
    inside = (X.min(axis=0) <= mixture.means) & (mixture.means <= X.max(axis=0))
    assert inside.all()


@pytest.mark.parametrize("method", METHODS)
def test_same_random_state_same_seed(method: str) -> None:
    small = survey(size=60)
    a, b = (seeds(method, found=small)[0] for _ in range(2))
    (c,) = seeds(method, found=small, random=np.random.RandomState(1))
    np.testing.assert_array_equal(a.means, b.means)
    np.testing.assert_array_equal(a.covariance.values, b.covariance.values)
    if method.startswith("random"):  # the others find the same clusters
        assert not np.array_equal(a.means, c.means)


def test_good_seeds_find_separate_clusters() -> None:
    for method in ("kmeans", "k-means++", "subsample"):
        (mixture,) = seeds(method, found=survey(size=90))
        nearest = np.linalg.norm(mixture.means[:, None] - CENTRES, axis=2)
        assert np.all(nearest.min(axis=0) < 0.6)  # 30 rows of unit spread each: an error of 0.2


@pytest.mark.parametrize("method", ["kmeans", "k-means++", "random", "random_from_data"])
def test_n_init_seeds_differ(method: str) -> None:
    mixtures = seeds(method, n_init=4)
    assert len(mixtures) == 4
    if method.startswith("random"):
        assert len({m.means.tobytes() for m in mixtures}) == 4
    else:  # clusters this clear are found from almost everywhere, in any order
        assert len({m.means.tobytes() for m in mixtures}) > 1


def test_a_subsample_goes_on_with_one() -> None:
    assert len(seeds("subsample", n_init=4)) == 1


def test_the_best_of_the_subsamples_trials_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[Any] = []
    original = seeding._polished

    def spy(rows: Any, larger: Any, mixtures: list[list[Mixture]], *args: Any) -> Mixture:
        kinds.extend(mixtures)
        return original(rows, larger, mixtures, *args)

    monkeypatch.setattr(seeding, "_polished", spy)
    (mixture,) = seeds("subsample", n_init=9, found=survey(size=60))
    assert [len(kind) for kind in kinds] == [5, 4]  # k-means++ and k-means
    sample, _ = survey(size=60).sample.points()
    likelihood = mixture.score_samples(sample).mean()
    assert all(likelihood >= trial.score_samples(sample).mean() for kind in kinds for trial in kind)


def polished_on(x: Any, kinds: list[list[Mixture]], tol: float) -> Mixture:
    return seeding._polished(as_rows(x), survey(x).sample.first(0), kinds, tol, 1e-6)


@pytest.mark.parametrize("order", [1, -1])
def test_the_better_kind_of_start_wins_at_the_end(order: int) -> None:
    random = np.random.RandomState(0)
    long = random.normal(size=(2000, 2)) * [9.0, 0.1]
    x = np.concatenate([long, long + np.array([0.0, 1.0])])  # two long clusters, which k-means cuts across
    across = Mixture(np.full(2, 0.5), np.array([[-7.0, 0.5], [7.0, 0.5]]), Full.of(np.stack([20 * np.eye(2)] * 2)))
    along = Mixture(np.full(2, 0.5), np.array([[0.0, 0.4], [0.0, 0.6]]), Full.of(np.stack([99 * np.eye(2)] * 2)))
    kinds = [[across], [along]][::order]
    polished = polished_on(x, kinds, 1e-6)
    alone = [polished_on(x, [kind], 1e-6).score_samples(x).mean() for kind in kinds]
    assert polished.score_samples(x).mean() == max(alone)
    assert min(alone) < max(alone)


def test_a_stuck_trial_is_left_behind() -> None:
    # Components on the same spot stay together for ever: going on from the first trial would show.
    spread = Full.of(np.stack([9 * np.eye(2)] * 3))
    stuck = Mixture(np.full(3, 1 / 3), np.tile(X.mean(axis=0), (3, 1)), spread)
    good = Mixture(np.full(3, 1 / 3), CENTRES, spread)
    for trials in ([stuck, good], [good, stuck]):
        polished = polished_on(X, [trials], 1e-3)
        np.testing.assert_allclose(polished.means, CENTRES, atol=0.5)


def test_the_best_start_goes_on_on_more_rows_but_a_tenth_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = seeding.advanced

    def spy(rows: Any, runs: Any) -> Any:
        sizes.append(rows.n_rows)
        return original(rows, runs)

    monkeypatch.setattr(seeding, "advanced", spy)
    monkeypatch.setattr(seeding, "TRIAL_ROWS", 30)
    monkeypatch.setattr(seeding, "sample_size", lambda k, d, few=50: few)
    x = np.tile(X, (2, 1)) + np.random.default_rng(1).normal(size=(1200, 2))
    for size, larger in ((600, [120]), (100, [100]), (30, [])):
        found = survey(x, size=size)
        (mixture,) = seeds("subsample", found=found)
        assert sizes == [30, 30, *larger]
        sizes.clear()
        if larger:  # EM there is at its end
            sample, _ = found.sample.first(larger[0]).points()
            after = mixture.maximise(mixture.expectation(sample), 1e-6)
            gain = after.score_samples(sample).mean() - mixture.score_samples(sample).mean()
            assert 0 <= gain < 1e-3


def test_a_leader_that_collapsed_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(rows: Any, runs: list[seeding.Run]) -> list[seeding.Run]:
        failure = CollapseError("A component collapsed.", 0)
        first, *others = runs
        at_the_end = first.max_iter == seeding.SAMPLE_ITER
        return [
            replace(first, trace=(9.0,), failure=failure if at_the_end else None),
            *(replace(run, trace=(1.0,)) for run in others),
        ]

    monkeypatch.setattr(seeding, "advanced", ended)
    collapsed, sound = (
        Mixture(np.full(3, 1 / 3), CENTRES + i, Full.of(np.stack([np.eye(2)] * 3))) for i in (0, 1)
    )
    assert polished_on(X, [[collapsed], [sound]], 1e-3) is sound


def test_other_starts_are_found_on_the_whole_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large: an online fit's is as large as the user asks."""
    monkeypatch.setattr(seeding, "sample_size", lambda k, d, few=50: few)
    labelled: list[int] = []
    original = seeding.moments
    monkeypatch.setattr(
        seeding,
        "moments",
        lambda *args: labelled.append(len(args[1])) or original(*args),  # type: ignore[func-returns-value]
    )
    for method in ("kmeans", "k-means++", "random_from_data"):
        seeds(method)
    assert set(labelled) == {600}


def test_auto_is_kmeans_where_the_sample_holds_all() -> None:
    def auto_of(found: Survey) -> str:
        return resolve("auto", found.overall.n_rows, found.sample.size)

    assert auto_of(survey(size=600)) == "kmeans"
    assert auto_of(survey(size=599)) == "subsample"
    assert resolve("random", 600, 60) == "random"
    weight = np.where(np.arange(600) < 300, 1.0, 0.0)
    assert auto_of(survey(weight=weight, size=300)) == "kmeans"  # rows of no weight do not count
    (auto,), (kmeans,) = seeds("auto"), seeds("kmeans")
    np.testing.assert_array_equal(auto.means, kmeans.means)
    small = survey(size=60)
    (auto,), (subsample,) = seeds("auto", found=small), seeds("subsample", found=small)
    np.testing.assert_array_equal(auto.means, subsample.means)


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


def test_the_sample_has_a_size_for_every_shape() -> None:
    assert sample_size(1, 2) == 20_000
    assert sample_size(100, 64) == 20 * 100 * 65
    d = 10**6
    assert sample_size(4, d) * d * 8 <= 256 * 2**20
    assert sample_size(1000, 10**7) >= 1000  # never fewer rows than components
    for tried in ("auto", "subsample"):
        assert survey_size(tried, 1, 2) == 60_000
        assert survey_size(tried, 100, 64) == sample_size(100, 64)
        assert survey_size(tried, 4, 1000) == sample_size(4, 1000)  # 60,000 would be too large
        assert survey_size(tried, 4, 200) * 200 * 8 <= 64 * 2**20
    assert survey_size("kmeans", 1, 2) == sample_size(1, 2)


# Given parts


def test_a_whole_start_is_taken_as_it_is() -> None:
    covariance = Full.of(np.stack([np.eye(2)] * 3))
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
    (mixture,) = seeds("kmeans", found=survey(start=flipped), n_init=3)
    expected = np.stack([X[flipped == j].mean(axis=0) for j in range(3)])
    np.testing.assert_allclose(mixture.means, expected, rtol=1e-12, atol=1e-13)
    cov = np.stack([np.cov(X[flipped == j].T, bias=True) + 1e-6 * np.eye(2) for j in range(3)])
    np.testing.assert_allclose(mixture.covariance.values, cov, rtol=1e-11)
    (weighted,) = seeds("kmeans", found=survey(start=flipped), start=Start(weights=np.array([0.1, 0.2, 0.7])))
    np.testing.assert_array_equal(weighted.weights, [0.1, 0.2, 0.7])
    np.testing.assert_array_equal(weighted.means, mixture.means)


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_that_no_row_has_takes_the_overall_moments(kind: str) -> None:
    (mixture,) = seeds("kmeans", kind, found=survey(kind=kind, start=LABELS % 2))
    np.testing.assert_allclose(mixture.means[2], X.mean(axis=0), rtol=1e-12)
    assert mixture.weights[2] == 0
    assert np.all(np.isfinite(mixture.covariance.values))


def test_fewer_distinct_rows_than_components() -> None:
    x = np.repeat([[0.0, 0.0], [5.0, 5.0]], 30, axis=0)
    for method in ("k-means++", "random", "random_from_data"):
        (mixture,) = seeds(method, found=survey(x))
        assert np.all(np.isfinite(mixture.score_samples(x)))


def test_a_dask_array_is_not_read_again(reads: Any) -> None:
    counted = reads(X, (100, 2))
    found = survey(counted.array)
    before = counted.total
    seeds("subsample", found=found)
    assert counted.total == before == 6
    assert isinstance(counted.array, da.Array)
