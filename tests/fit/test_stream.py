"""Streams: the first rows seed the model, later batches move it, and a batch that is refused leaves no trace."""

import itertools
import pickle
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from daskgmm import CollapseError, DataError, GaussianMixture, MiniBatchGaussianMixture
from daskgmm.compute.rows import as_rows
from daskgmm.compute.threads import Threads
from daskgmm.fit.tasks import TakeFirst
from tests.apart import GIVEN, MEANS, TRUTH, WEIGHTS, D, K, assert_same, in_order, online, rows_of, state, streamed
from tests.structures import KINDS, matrices

EACH = pytest.mark.parametrize("kind", KINDS)
X = rows_of(0, 30_000)
HELD = rows_of(1, 200_000)
BEST = TRUTH.score_samples(HELD).mean()


def by(size: int) -> Any:
    """Batches of one size, to the end of the rows."""
    return itertools.repeat(size)


# The start


def test_the_start_does_not_depend_on_how_rows_arrive() -> None:
    whole = online().partial_fit(X[:150])
    for sizes in ([1] * 150, [149, 1], [60, 60, 30]):
        assert_same(streamed(online(), X[:150], sizes), whole, "n_batches_seen_", "online_")
    # What comes after the first rows in the same batch is learnt, not used to seed.
    one = online().partial_fit(X[:500])
    for sizes in ([150, 350], [60, 440]):
        np.testing.assert_array_equal(streamed(online(), X[:500], sizes).means_, one.means_)
    assert not np.array_equal(one.means_, whole.means_)


@given(n=st.integers(1, 60), chunk=st.integers(1, 20), size=st.integers(0, 80))
def test_the_first_rows_are_those_of_the_whole(n: int, chunk: int, size: int) -> None:
    x = np.arange(n)[:, None].astype(np.float32)
    weight = np.where(np.arange(n) % 3 == 1, 0.0, 2.0)
    rows = as_rows(da.from_array(x, chunks=(chunk, 1)), weight=weight)
    first = Threads().reduce(rows, TakeFirst(size))
    wanted = np.flatnonzero(weight)[:size]
    assert first.x[:, 0].tolist() == wanted.tolist()
    assert first.weight.tolist() == [2.0] * len(wanted)
    assert [(b * chunk + r) for b, r in first.places.tolist()] == wanted.tolist()


def test_init_size_and_given_starts() -> None:
    found = online(init_size=500).partial_fit(X[:499])
    assert not hasattr(found, "means_")
    assert hasattr(found.partial_fit(X[499:500]), "means_")
    found = online(**GIVEN).partial_fit(X[:2])  # nothing to wait for
    np.testing.assert_allclose(found.means_, MEANS, atol=0.2)
    assert found.n_samples_seen_ == 2


def test_a_start_that_is_given_counts_as_the_rows_asked_for() -> None:
    start = GIVEN | {"means_init": MEANS + 1}
    few, many = (online(init_size=size, **start).partial_fit(X[:100]) for size in (30, 30_000))
    assert np.abs(many.means_ - MEANS - 1).max() < 0.05 < np.abs(few.means_ - MEANS - 1).max()


@pytest.mark.parametrize("settings", [{"init_size": 60}, GIVEN], ids=["smaller", "given"])
def test_another_start_while_rows_wait(settings: dict[str, Any]) -> None:
    found = online().partial_fit(X[:100])
    assert found.set_params(**settings).partial_fit(X[100:120]).n_samples_seen_ == 120
    np.testing.assert_allclose(found.means_[in_order(found.means_)], MEANS, atol=0.8)


def test_weights_of_the_first_rows_count_in_the_start() -> None:
    x = X[:300]
    weight = np.where(x[:, 0] > 3, 9.0, 1.0)
    found = online(init_size=300).partial_fit(x, sample_weight=weight)
    share = weight[x[:, 0] > 3].sum() / weight.sum()
    np.testing.assert_allclose(found.weights_[np.argmax(found.means_[:, 0])], share, atol=0.05)


def test_components_that_start_alike_are_told() -> None:
    with pytest.warns(UserWarning, match="room for 1 of 3 components"):
        online().partial_fit(np.zeros((150, D)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        online().partial_fit(X[:150])


def test_a_degenerate_start_is_refused_and_waits() -> None:
    found = MiniBatchGaussianMixture(2, reg_covar=0, random_state=0)
    with pytest.raises(CollapseError):
        found.partial_fit(np.ones((100, D)))
    found.partial_fit(X[:100])
    assert found.n_samples_seen_ == 100
    np.testing.assert_allclose(found.lower_bound_, found.score(X[:100]), atol=0.05)  # of the start, as yet


@EACH
def test_a_value_too_large_is_not_kept_for_the_start(kind: str) -> None:
    found = online(covariance_type=kind).partial_fit(X[:20])
    with pytest.raises(DataError, match="value too large"):
        found.partial_fit(X[20:40] * 1e200)
    assert_same(found.partial_fit(X[20:200]), streamed(online(covariance_type=kind), X[:200], [20, 180]))


def test_rows_that_wait_for_the_start_are_saved(tmp_path: Path) -> None:
    whole = online().partial_fit(X[:20], sample_weight=1.0 + np.arange(20) % 2)
    whole.save(tmp_path / "m.npz")
    loaded = MiniBatchGaussianMixture.load(tmp_path / "m.npz")
    assert_same(loaded, whole)
    assert (loaded.n_samples_seen_, loaded.n_batches_seen_) == (20, 1)
    with pytest.raises(NotFittedError, match=r"20 of the first 150 rows have come"):
        loaded.predict(X[:2])
    unweighted = online().partial_fit(X[:20])
    for found in (whole, loaded, unweighted):
        found.partial_fit(X[20:520])
    assert_same(loaded, whole)
    assert not np.array_equal(whole.means_, unweighted.means_)  # weights wait, too
    assert loaded.next_row_ == 520


# Batches


@EACH
@pytest.mark.parametrize("sizes", [[30] * 400, [1, 7, 500, 2, 90] * 20, [12_000]], ids=["small", "ragged", "one"])
def test_ragged_batches_learn_alike(kind: str, sizes: list[int]) -> None:
    found = streamed(online(covariance_type=kind), X[:12_000], sizes)
    assert (found.n_samples_seen_, found.n_batches_seen_) == (12_000, len(sizes))
    order = in_order(found.means_)
    np.testing.assert_allclose(found.means_[order], MEANS, atol=0.15)
    np.testing.assert_allclose(found.weights_[order], WEIGHTS, atol=0.02)
    assert BEST - found.score(HELD) < 5e-3


def test_chunked_rows_are_one_batch() -> None:
    chunked = da.from_array(X[:1000], chunks=(100, D))
    found, other = online().partial_fit(chunked), online().partial_fit(X[:1000])
    np.testing.assert_allclose(found.means_, other.means_, rtol=1e-10)
    assert (found.n_batches_seen_, found.n_samples_seen_) == (1, 1000)


def test_the_state_does_not_grow() -> None:
    found = streamed(online(), X[:2000], by(20))
    before = len(pickle.dumps(found))
    streamed(found, X[2000:12_000], by(20))
    assert len(pickle.dumps(found)) < before + 50


def test_a_half_life_follows_the_stream() -> None:
    found = streamed(online(half_life=1000.0), X[:10_000], by(100))
    np.testing.assert_allclose(found.effective_sample_size_, 2 * 1000 / np.log(2), rtol=0.01)
    streamed(found, rows_of(7, 20_000) + np.linspace(0, 5, 20_000)[:, None], by(100))
    # Rows of age a count 2^(-a/1000): the mean is that of 1443 rows ago, when all was 0.36 lower.
    np.testing.assert_allclose(found.means_[in_order(found.means_)], MEANS + (5 - 0.36), atol=0.2)


def test_a_batch_of_no_weight_changes_nothing() -> None:
    found, as_it_was = online().partial_fit(X[:500]), online().partial_fit(X[:500])
    found.partial_fit(X[:5], sample_weight=np.zeros(5))
    assert_same(found, as_it_was, "n_batches_seen_", "next_row_", "online_")
    assert (found.n_batches_seen_, found.next_row_) == (2, 505)
    assert online().partial_fit(X[:5], sample_weight=np.zeros(5)).n_samples_seen_ == 0


def test_the_bound_is_of_the_last_batch_before_it_was_learnt() -> None:
    found = online(max_iter=2, tol=1.0).fit(X)
    assert found.converged_
    assert found.lower_bounds_
    expected = found.online_.mixture.score_samples(X[:200]).mean()
    found.partial_fit(X[:200])
    np.testing.assert_allclose(found.lower_bound_, expected, rtol=1e-12)
    assert not found.converged_


def test_reg_covar_may_change_between_batches() -> None:
    found = online(half_life=500.0).partial_fit(X[:500])
    before = found.covariances_.copy()
    found.set_params(reg_covar=5.0)
    streamed(found, X[500:5500], by(500))
    assert np.linalg.eigvalsh(found.covariances_).min() - np.linalg.eigvalsh(before).min() > 3


@pytest.mark.parametrize("half_life", [None, 2000.0])
def test_weights_below_one_are_shares(half_life: float | None) -> None:
    """Only their ratios tell something: a row that weighs what the first do on average counts as one."""
    weight = np.random.default_rng(0).uniform(0.5, 2, len(X)) / 2

    def both(w: Any) -> tuple[Any, Any]:
        stream = online(half_life=half_life)
        for first in range(0, 3000, 100):
            stream.partial_fit(X[first : first + 100], sample_weight=w[first : first + 100])
        return online(half_life=half_life).fit(X, sample_weight=w), stream

    for found, expected in zip(both(2.0**-20 * weight), both(weight), strict=True):
        np.testing.assert_allclose(found.means_, expected.means_, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.covariances_, expected.covariances_, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.effective_sample_size_, expected.effective_sample_size_, rtol=1e-9)
        assert found.n_batches_seen_ == expected.n_batches_seen_


def test_a_histogram_is_learnt_as_its_rows() -> None:
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(0, 1, 7000), random.normal(4, 1, 3000)])
    counts, edges = np.histogram(x, 60)
    middle = ((edges[1:] + edges[:-1]) / 2)[counts > 0, None]
    rows = np.repeat(middle, counts[counts > 0], axis=0)
    wanted = MiniBatchGaussianMixture(2, random_state=0).fit(rows)
    found = MiniBatchGaussianMixture(2, random_state=0).fit(middle, sample_weight=counts[counts > 0].astype(float))
    best = GaussianMixture(2, tol=1e-8, max_iter=500, random_state=0).fit(rows)
    for model in (wanted, found):
        assert best.score(rows) - model.score(rows) < 2e-4
        np.testing.assert_allclose(np.sort(model.weights_), np.sort(best.weights_), atol=0.01)
    assert found.online_.clock == wanted.online_.clock == 20_000
    assert found.n_samples_seen_ == len(middle)


# What is refused


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (np.array([[0.0, np.nan]]), None, "NaN: block 0, row"),
        (da.from_array(np.diag([1, 1, np.nan])[:, 1:], chunks=(1, 2)), None, "NaN: block 2, row"),
        (np.array([[0.0, np.inf]]), None, "infinity"),
        (np.array([[0.0, 1.0]]), [-1.0], "Negative values"),
        (np.array([[0.0, 1.0]]), [np.nan], "sample_weight contains NaN"),
        (np.array([[0.0, 1.0]]), [1.0, 2.0], "sample_weight.shape"),
        (np.array([[0.0, 1.0, 2.0]]), None, "expecting 2 features"),
        (np.array([["a", "b"]]), None, "string"),
        (np.zeros((0, 2)), None, r"0 sample\(s\)"),
        (np.zeros(2), None, "Expected 2D array"),
        (np.array([[0.0, 1 + 2j]]), None, "[Cc]omplex"),
        (np.full((3, D), 1e200), None, r"too large|infinity"),
    ],
)
def test_a_refused_batch_leaves_the_model_as_it_was(seeded: bool, x: Any, weight: Any, message: str) -> None:
    found = online().partial_fit(X[: 500 if seeded else 20])
    before, again = state(found), pickle.loads(pickle.dumps(found))
    with pytest.raises(ValueError, match=message):
        found.partial_fit(x, sample_weight=weight)
    assert state(found) == before
    for one in (found, again):  # and it goes on as if nothing had been
        one.partial_fit(X[500:1000])
    assert_same(found, again)


def test_sums_too_large_are_refused() -> None:
    found = online().partial_fit(X[:500]).partial_fit(np.full((3, D), 1e100))  # absurd, but not too large
    before = state(found)
    with pytest.raises(DataError, match="too large"):  # the density is a number now, the scatter is not
        found.partial_fit(np.full((3, D), 1e155))
    assert state(found) == before


@pytest.mark.parametrize("w", [5e-324, 1e308])
def test_weights_that_add_up_to_no_number_are_refused(w: float) -> None:
    started = online().partial_fit(X[:500])
    before = state(started)
    with pytest.raises(DataError, match=r"Scale|too large"):
        started.partial_fit(X[:10], sample_weight=np.full(10, w))
    assert state(started) == before
    with pytest.raises(DataError, match=r"Scale|too large|add up"):
        online().fit(X, sample_weight=np.full(len(X), w))
    with pytest.raises(DataError, match=r"Scale|too large|add up"):
        online().partial_fit(X[:500], sample_weight=np.full(500, w))


@pytest.mark.parametrize("w", [1e308, 1e200, 1e155, 1e153, 1e150, 1.0, 1e-150, 1e-160, 1e-163, 1e-200, 5e-324])
@pytest.mark.parametrize("size", [1e155, 5e153, 1e150, 1.0])
def test_rows_that_wait_are_refused_at_once_or_never(w: float, size: float) -> None:
    x = size * np.random.default_rng(0).uniform(-1, 1, size=(10, D))
    found = online()
    with suppress(DataError):
        found.partial_fit(x, sample_weight=np.full(10, w))
    waits = hasattr(found, "n_features_in_")
    assert waits or not (1e-150 <= w <= 1e150 and size == 1)
    assert not waits or (1e-163 <= w < 1e154 and size < 1e155)
    for _ in range(4):
        found.partial_fit(X[:100], sample_weight=np.full(100, min(max(w, 1e-150), 1e150)))
    assert np.isfinite(found.means_).all()


# What keeps it sound


@EACH
def test_constant_columns_and_equal_rows(kind: str) -> None:
    x = np.column_stack([rows_of(0, 1000), np.full(1000, 7.0)])
    found = streamed(online(covariance_type=kind), x, by(10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # components die
        streamed(found, np.full((1500, 3), 7.0), by(10))
    assert np.isfinite(found.score_samples(x)).all()
    assert (np.linalg.eigvalsh(matrices(found.covariances_, kind, K, 3)) > 0).all()


def test_small_batches_keep_every_component() -> None:
    random = np.random.default_rng(5)
    weights, means = random.dirichlet(np.full(8, 5.0)), 6 * random.normal(size=(8, 4))
    x = means[random.choice(8, 8000, p=weights)] + random.normal(size=(8000, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no component dies
        found = streamed(MiniBatchGaussianMixture(8, random_state=0), x, by(10))
    assert found.weights_.min() > 0.1 * weights.min()
    values = np.linalg.eigvalsh(found.covariances_)
    assert 0.1 < values.min() < values.max() < 10


def test_a_component_that_went_and_comes_back_is_found() -> None:
    """After 100 half-lives it weighs nothing: it serves nowhere, and is placed where its rows are."""
    found = online(half_life=200.0).partial_fit(X[:500])
    gone = X[np.argmin(((X[:, None] - MEANS) ** 2).sum(axis=2), axis=1) < 2]
    streamed(found, gone[:20_000], by(200))
    idle = int(np.argmin(found.weights_))
    assert found.weights_[idle] < 0.01
    with pytest.warns(UserWarning, match=rf"Component {idle} did least: after batch \d+ it starts anew"):
        streamed(found, X[:4000], by(200))
    np.testing.assert_allclose(found.means_[in_order(found.means_)], MEANS, atol=0.7)
    assert BEST - found.score(HELD) < 5 * 17 * np.log(2) / (4 * 200)  # of its noise floor


def alike(n: int) -> Any:
    """Rows that are equal, and rows that can hardly be told apart."""
    return {"equal": np.ones((n, D)), "alike": 1 + 1e-3 * np.random.default_rng(0).normal(size=(n, D))}


@pytest.mark.filterwarnings("ignore:Component|The rows that")
@pytest.mark.parametrize("first", ["equal", "alike"])
def test_copies_part_once_rows_differ(first: str) -> None:
    found = online().partial_fit(alike(400)[first])
    streamed(found, X[:20_000], by(500))
    np.testing.assert_allclose(found.means_[in_order(found.means_)], MEANS, atol=0.5)
    assert BEST - found.score(HELD) < 0.05


@pytest.mark.filterwarnings("ignore:Component|The rows that")
def test_an_image_may_come_row_by_row() -> None:
    """Sky, sea and sand, from above."""
    random = np.random.default_rng(1)
    colours = np.array([[0.4, 0.6, 0.9], [0.1, 0.3, 0.5], [0.8, 0.7, 0.5]])
    pixels = np.repeat(colours, [4000, 3000, 5000], axis=0) + 0.02 * random.normal(size=(12_000, 3))
    found = streamed(online(), pixels, by(100))
    # The last half of the rows has three quarters of the weight, whatever it shows; none is forgotten.
    distance = np.linalg.norm(found.means_[:, None] - colours, axis=2)
    np.testing.assert_allclose(distance.min(axis=0), 0, atol=0.01)
    assert found.weights_[distance.argmin(axis=0)].min() > 0.05


@pytest.mark.parametrize("half_life", [None, 400.0])
def test_where_a_component_is_placed_anew_the_average_begins_again(half_life: float | None) -> None:
    far = np.concatenate([MEANS[:2], [[500.0, 500.0]]])
    start = GIVEN | {"weights_init": np.full(K, 1 / 3), "means_init": far}
    with pytest.warns(UserWarning, match="did least"):
        found = streamed(online(half_life=half_life, init_size=100, **start), X[:20_000], by(500))
    # Where it was is nowhere in what is published.
    assert np.abs(found.means_).max() < 20
    assert found.score(HELD) > BEST - 0.05


def rarely(n: int, rare: int, seed: int) -> Any:
    """Two wide clusters, and few rows far from them."""
    random = np.random.default_rng(seed)
    x = 1.5 * random.normal(size=(n, 4)) + np.where(random.random((n, 1)) < 0.5, [8.0, 0, 0, 0], 0.0)
    x[random.choice(n, rare, replace=False)] = 25 + random.normal(size=(rare, 4))
    return x


@pytest.mark.parametrize("seed", range(4))
def test_a_rare_component_is_kept(seed: int) -> None:
    """In a pass from the library's own start, and in one from a model that is taken over."""
    x = rarely(40_000, 18, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = MiniBatchGaussianMixture(3, random_state=seed).fit(x)
    start: dict[str, Any] = {"weights_init": found.weights_, "means_init": found.means_}
    start |= {"precisions_init": found.precisions_}
    best = GaussianMixture(3, **start, tol=1e-8, max_iter=200).fit(x)
    taken = MiniBatchGaussianMixture.from_parameters(best.weights_, best.means_, best.covariances_)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taken.set_params(warm_start=True, random_state=seed).fit(x)
    for model in (best, found, taken):
        rarest = int(np.argmin(model.weights_))
        np.testing.assert_allclose(model.means_[rarest], 25, atol=1.5)
        assert 9 < model.weights_[rarest] * len(x) < 36
        assert best.score(x) - model.score(x) < 5e-3


@pytest.mark.parametrize("n", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_tight_component_is_not_inflated(n: int) -> None:
    random = np.random.default_rng(0)
    x = np.where(
        random.random((n, 1)) < 0.9, 10 * random.normal(size=(n, 2)), 40 + 0.01 * random.normal(size=(n, 2))
    )
    found = MiniBatchGaussianMixture(2, random_state=0).fit(x)
    tight = found.covariances_[np.argmin(found.weights_)]
    np.testing.assert_allclose(np.sqrt(np.diag(tight)), 0.01, rtol=0.1)
    assert found.score(x) > -6.42
