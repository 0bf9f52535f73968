"""The online estimator: a pass against batch EM, rows that are added to a store, and how models go on."""

import itertools
import pickle
import threading
from pathlib import Path
from typing import Any, ClassVar

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import zarr
from sklearn.exceptions import NotFittedError

from daskgmm import DataError, GaussianMixture, MiniBatchGaussianMixture, watching
from tests.apart import MEANS, TRUTH, WEIGHTS, D, K, assert_same, in_order, online, rows_of, state, streamed
from tests.listeners import stop
from tests.structures import KINDS, n_parameters

EACH = pytest.mark.parametrize("kind", KINDS)
slow = pytest.mark.slow  # ten seconds each
X = rows_of(0, 30_000)
HELD = rows_of(1, 200_000)
BEST = TRUTH.score_samples(HELD).mean()


def chunked(x: Any, rows: int = 3000) -> Any:
    return da.from_array(x, chunks=(rows, D))


def gap(model: Any) -> float:
    """How far the mean log-density of new rows lies below that of the truth."""
    return float(BEST - model.score(HELD))


def unit(n: int, kind: str = "full") -> float:
    """That gap for maximum likelihood on n rows, on average."""
    return n_parameters(kind, K, D) / (2 * n)


# Passes


@EACH
def test_one_pass_is_close_to_maximum_likelihood(kind: str) -> None:
    found = online(covariance_type=kind).fit(chunked(X))
    # Twice p/(2n) on average; the gap of a sample of 20,000 rows alone would be the same here, so not below it.
    assert -1e-5 < gap(found) < 5 * unit(len(X), kind)
    assert (found.n_iter_, found.n_passes_, found.n_samples_seen_) == (1, 2, len(X))
    assert found.n_batches_seen_ > 10
    assert 1000 < found.effective_sample_size_ < len(X) + 20_000


def test_one_pass_beats_the_sample_it_started_from() -> None:
    x = rows_of(2, 200_000)
    start = GaussianMixture(K, tol=1e-8, max_iter=500, random_state=0).fit(x[:1000])
    given = {"weights_init": start.weights_, "means_init": start.means_, "precisions_init": start.precisions_}
    found = online(init_size=1000, **given).fit(x)
    assert gap(start) > 50 * unit(len(x))
    assert gap(found) < 4 * unit(len(x))
    assert found.n_passes_ == 1  # nothing to seed


def test_sorted_rows_are_as_good_as_shuffled_ones(tmp_path: Path) -> None:
    x = rows_of(3, 100_000)
    x = x[np.argsort(x @ [1.0, 1.0])]
    array = zarr.create_array(tmp_path / "x.zarr", shape=x.shape, chunks=(500, D), dtype=x.dtype)
    array[...] = x
    for block_size in ("64 MiB", 100_000):  # one window, and four
        found = online(block_size=block_size).fit(str(tmp_path / "x.zarr"))
        assert gap(found) < 10 * unit(len(x)), block_size


@pytest.mark.parametrize("lazy", [True, False])
def test_the_same_seed_gives_the_same_bits(lazy: bool) -> None:
    x = chunked(X) if lazy else X
    one, again, other = (online(random_state=seed, max_iter=2).fit(x) for seed in (4, 4, 5))
    assert_same(one, again)
    assert not np.array_equal(one.means_, other.means_)


def test_passes_stop_on_rows_that_were_held_out() -> None:
    found = online(max_iter=10, tol=1e-4).fit(X)
    assert found.converged_
    assert found.n_iter_ == len(found.lower_bounds_) < 10
    assert found.n_samples_seen_ == found.n_iter_ * (len(X) - 2000)  # a tenth of a sample of 20,000
    assert found.n_passes_ == found.n_iter_ + 1


def test_a_second_pass_that_gains_is_followed_by_a_third() -> None:
    random = np.random.default_rng(0)
    close = 0.3 * MEANS[random.choice(K, 30_000, p=WEIGHTS)] + random.normal(size=(30_000, D))
    passes = [
        online(max_iter=6, tol=1e-9, init_size=1000, random_state=seed).fit(close).n_iter_ for seed in range(4)
    ]
    assert max(passes) >= 3
    assert min(passes) < 6


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, ">f8"])
def test_rows_of_any_type(dtype: Any) -> None:
    x = (10 * X[:5000]).astype(dtype)
    for found in (online().fit(x), streamed(online(), x, itertools.repeat(200))):
        assert found.means_.dtype == np.float64
        np.testing.assert_allclose(found.means_[in_order(found.means_)], 10 * MEANS, atol=1.5)


def test_unknown_chunk_sizes() -> None:
    x = chunked(X)
    x = x[x[:, 0] < 1e9]
    assert np.isnan(x.chunks[0]).all()
    found = online(max_iter=2, tol=0).fit(x)
    assert found.n_samples_seen_ == found.n_iter_ * (len(X) - 2000)
    assert gap(found) < 1e-3


def test_rows_of_no_weight_are_never_looked_at() -> None:
    weight, spoilt = np.ones(len(X)), X.copy()
    weight[::5], spoilt[::5] = 0, np.nan
    found = online(max_iter=2, tol=0).fit(spoilt, sample_weight=weight)
    assert found.n_samples_seen_ == found.n_iter_ * (24_000 - 2000)
    assert np.isfinite(found.covariances_).all()
    assert_same(found, online(nan_policy="omit", max_iter=2, tol=0).fit(spoilt))


def test_weights_count() -> None:
    weight = np.where(X[:, 0] > 3, 3.0, 1.0)  # the second component weighs three times
    share = online().fit(X, sample_weight=weight).weights_
    np.testing.assert_allclose(np.sort(share), np.sort([0.5 / 1.6, 0.9 / 1.6, 0.2 / 1.6]), atol=0.02)


def test_fit_forgets_rows_that_wait() -> None:
    found, other = online().partial_fit(X[:100]).fit(X), online().fit(X)
    assert_same(found, other)
    assert len(pickle.dumps(found)) < len(pickle.dumps(other)) + 50  # and holds them no more


def test_a_failed_fit_leaves_the_model_as_it_was() -> None:
    found = online().partial_fit(X[:500])
    before, spoilt = state(found), X[:1000].copy()
    spoilt[777, 1] = np.nan
    for chunks in (100, 1000):
        with pytest.raises(DataError, match="NaN"):
            found.fit(chunked(spoilt, chunks))
    with pytest.raises(DataError, match="at least one non-zero"):
        found.fit(X[:50], sample_weight=np.zeros(50))
    with pytest.raises(DataError, match="n_samples >= n_components"):
        found.fit(X[:2])
    found.set_params(warm_start=True)
    with pytest.raises(DataError, match=r"NaN: block \d+, row.* 777"):  # no survey before the pass
        found.fit(chunked(spoilt, 100))
    assert state(found.set_params(warm_start=False)) == before


class Watched(MiniBatchGaussianMixture):
    """Keeps what it answers after every change of its own."""

    answers: ClassVar[set[tuple[bytes, ...]]] = set()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if hasattr(self, "weights_"):
            self.answers.add(answer(self))


def answer(model: Any) -> tuple[bytes, ...]:
    return (
        model.score_samples(X[:50]).tobytes(),
        model.weights_.tobytes(),
        model.means_.tobytes(),
        model.covariances_.tobytes(),
    )


def test_a_batch_is_learnt_at_once_for_whoever_asks() -> None:
    model, whole = Watched(K, random_state=0), set()
    model.answers.clear()
    for first in range(0, 1000, 100):
        model.partial_fit(X[first : first + 100])
        if hasattr(model, "weights_"):
            whole.add(answer(model))
    assert len(whole) == 9
    assert model.answers == whole  # nothing between one batch and the next was ever to be seen


def test_another_thread_sees_the_model_before_a_batch_or_after_it() -> None:
    found, stopped = online().partial_fit(X[:500]), threading.Event()
    seen, whole = set(), {found.score_samples(X[:50]).tobytes()}

    def ask() -> None:
        while not stopped.is_set():
            seen.add(found.score_samples(X[:50]).tobytes())

    thread = threading.Thread(target=ask)
    thread.start()
    for first in range(500, 2000, 10):
        found.partial_fit(X[first : first + 10])
        whole.add(found.mixture_.score_samples(X[:50]).tobytes())
    stopped.set()
    thread.join(30)
    assert not thread.is_alive()
    assert seen
    assert seen <= whole


# Rows that are added to a store


def behind(first: int = 2000, **settings: Any) -> MiniBatchGaussianMixture:
    """A model that has learnt the first rows of a store."""
    model = online(**settings)
    return model.fit(X[:first])


def test_new_rows_are_learnt_once_and_no_others_read(reads: Any) -> None:
    model, seen = behind(), reads(X[:3000], (100, D))
    assert model.next_row_ == 2000
    batches = model.n_batches_seen_
    model.extend(seen.array)
    assert seen.counts == dict.fromkeys(range(20, 30), 1)
    assert (model.n_samples_seen_, model.next_row_) == (3000, 3000)
    assert model.n_batches_seen_ > batches
    assert (model.n_iter_, model.n_passes_, len(model.lower_bounds_)) == (1, 2, 1)  # of the fit
    as_it_was = pickle.loads(pickle.dumps(model))
    assert_same(model.extend(seen.array), as_it_was)  # nothing new
    assert seen.total == 10


@pytest.mark.parametrize(
    ("rows", "first", "last"),
    [
        (slice(None), 2000, 3000),
        (slice(2500, None), 2500, 3000),
        (slice(None, 2450), 2000, 2450),
        (slice(2110, 2250), 2110, 2250),
        (slice(-300, None), 2700, 3000),
        (slice(2990, 9999), 2990, 3000),
    ],
)
def test_rows_outside_of_the_range_have_no_say(rows: slice, first: int, last: int) -> None:
    spoilt, weight = np.full((3000, D), np.nan), np.zeros(3000)
    spoilt[first:last], weight[first:last] = X[first:last], 1.0
    found = behind().extend(chunked(X[:3000], 100), np.ones(3000), rows)
    assert (found.n_samples_seen_, found.next_row_) == (2000 + last - first, last)
    assert_same(found, behind().extend(chunked(spoilt, 100), np.ones(3000), rows))
    assert_same(found, behind().extend(chunked(X[:3000], 100), weight, rows))


def test_what_extend_refuses_names_the_way_for_another_store() -> None:
    with pytest.raises(DataError, match="partial_fit learns"):
        behind().extend(X[:1000])


@pytest.mark.parametrize(
    ("x", "rows"),
    [
        (X[:3000], slice(2000, 3000, 2)),
        (X[:3000], slice(0, 100)),
        (X[:3000], slice(2900, 2500)),
        (X[:1000], slice(None)),
        (chunked(X[:3000], 100)[chunked(X[:3000], 100)[:, 0] < 1e9], slice(None)),
    ],
    ids=["every second row", "learnt before", "backwards", "fewer than were learnt", "unknown numbers"],
)
def test_a_range_that_would_lose_count_is_refused_or_changes_nothing(x: Any, rows: slice) -> None:
    found = behind()
    try:
        found.extend(x, rows=rows)
    except ValueError:
        assert_same(found, behind())
    else:
        assert (found.next_row_, found.n_samples_seen_) == (2000, 2000)


def test_names_of_added_rows_are_those_of_the_fit() -> None:
    frame = pd.DataFrame(X[:3000], columns=["a", "b"])
    found = online().fit(frame[:2000])
    before = state(found)
    with pytest.raises(ValueError, match="feature names should match"):
        found.extend(frame[["b", "a"]])
    assert state(found) == before
    assert found.extend(frame).n_samples_seen_ == 3000


def test_a_store_that_grows_is_learnt_as_well_as_one_that_is_whole() -> None:
    found = behind(1000)
    for last in (2000, 5000, 12_000, 30_000):
        found.extend(chunked(X[:last]))
    assert found.n_samples_seen_ == found.next_row_ == len(X)
    assert gap(behind(1000)) > 10 * unit(len(X))
    assert gap(found) < 5 * unit(len(X))


def test_a_stream_goes_on_with_a_store() -> None:
    found = online().partial_fit(X[:20]).partial_fit(X[20:500])
    assert (found.next_row_, found.n_samples_seen_) == (500, 500)
    assert (found.extend(X[:800]).next_row_, found.n_samples_seen_) == (800, 800)
    assert (found.partial_fit(X[800:810]).next_row_, found.n_samples_seen_) == (810, 810)


def test_the_bound_is_of_the_rows_that_were_added() -> None:
    found = behind(max_iter=2, tol=1.0)
    assert found.converged_
    assert found.lower_bounds_ == [found.lower_bound_]
    wanted = found.online_.mixture.score_samples(X[2000:2010]).mean()  # one mini-batch
    np.testing.assert_allclose(found.extend(X[:2010]).lower_bound_, wanted, rtol=1e-12)
    assert not found.converged_


def test_rows_of_no_weight_are_behind_the_model_too() -> None:
    found = behind().extend(X[:3000], np.repeat([1.0, 0.0], [2000, 1000]))
    assert_same(found, behind(), "next_row_")
    assert found.next_row_ == 3000


def test_rows_that_are_added_count_with_their_weights() -> None:
    found = behind()
    clock = found.online_.clock
    found.extend(X[:3000], np.repeat([7.0, 2.0], [2000, 1000]))
    assert found.online_.clock == clock + 2000
    assert found.n_samples_seen_ == 3000
    plain = behind().extend(X[:3000])
    assert not np.array_equal(found.means_, plain.means_)


def test_what_cannot_be_added_leaves_the_model_as_it_was() -> None:
    found = behind()
    before, spoilt = state(found), X[:3000].copy()
    spoilt[2777, 1] = np.nan
    with pytest.raises(DataError, match=r"NaN: block 27, row\(s\) 2777"):
        found.extend(chunked(spoilt, 100))
    with pytest.raises(DataError, match="expecting 2 features"):
        found.extend(np.zeros((3000, 3)))
    with pytest.raises(KeyboardInterrupt), watching(stop(3)):
        found.extend(chunked(X, 100))
    assert state(found) == before
    with pytest.raises(DataError, match="needs the shape of the last fit"):
        found.set_params(n_components=2).extend(X[:3000])
    with pytest.raises(NotFittedError):
        online().extend(X[:3000])


def test_rows_that_wait_are_learnt_first(reads: Any) -> None:
    """The start is that of `partial_fit`, and of few blocks."""
    waiting, seen = online().partial_fit(X[:20]), reads(X[:3000], (100, D))
    waiting.extend(seen.array, rows=slice(20, 30))
    assert (waiting.n_samples_seen_, waiting.next_row_, waiting.n_batches_seen_) == (30, 30, 2)
    assert waiting.n_rows_to_start_ == 50 * waiting.n_components - 30
    assert seen.counts == {0: 1}
    one, other = pickle.loads(pickle.dumps(waiting)), pickle.loads(pickle.dumps(waiting))
    size = 50 * waiting.n_components
    assert_same(one.extend(X[:size]), other.partial_fit(X[30:size]))
    waiting.extend(seen.array)
    assert (waiting.n_samples_seen_, waiting.next_row_, waiting.n_rows_to_start_) == (3000, 3000, 0)
    assert seen.total <= 1 + size // 100 + 1 + 30
    assert gap(waiting) < 0.1


def test_rows_that_wait_stay_where_the_next_are_refused() -> None:
    waiting, spoilt = online().partial_fit(X[:20]), X[:3000].copy()
    spoilt[[40, 2777], 1] = np.nan
    for rows in (slice(20, 100), slice(60, 3000)):  # as the start is looked for, and after it
        with pytest.raises(DataError, match="NaN: block"):
            waiting.extend(chunked(spoilt, 100), rows=rows)
        assert (waiting.n_samples_seen_, waiting.next_row_) == (20, 20)
    assert waiting.extend(chunked(spoilt, 100), rows=slice(41, 2777)).next_row_ == 2777


def test_a_start_that_is_given_meanwhile_learns_the_rows_that_wait() -> None:
    given: Any = {"weights_init": [1.0], "means_init": X[:1], "precisions_init": np.eye(D)[None]}
    waiting = online(warm_start=False).set_params(n_components=1).partial_fit(X[:20]).set_params(**given)
    assert waiting.extend(X[:100]).n_samples_seen_ == 100


def test_a_warm_start_does_not_drop_rows_that_wait() -> None:
    waiting = online(warm_start=True).partial_fit(X[:20])
    with pytest.raises(DataError, match="20 rows wait for the start of the model, and fit would drop them"):
        waiting.fit(X)
    assert waiting.n_samples_seen_ == 20
    assert waiting.set_params(warm_start=False).fit(X).n_rows_to_start_ == 0


# Going on


@EACH
@pytest.mark.parametrize("half_life", [None, 700.0])
def test_a_loaded_model_learns_on_bit_for_bit(kind: str, half_life: float | None, tmp_path: Path) -> None:
    found = streamed(online(covariance_type=kind, half_life=half_life), X[:1000], itertools.repeat(70))
    found.save(tmp_path / "m.npz")
    again = MiniBatchGaussianMixture.load(tmp_path / "m.npz")
    assert again.get_params() == found.get_params()
    for first in range(1000, 2000, 130):
        assert_same(found, again)
        for one in (found, again):
            one.partial_fit(X[first : first + 130])
    assert state(found) == state(again)
    for one in (found, again):
        one.extend(X[:4000])
    assert_same(found, again)


def test_a_fitted_model_learns_on(tmp_path: Path) -> None:
    found = online().fit(X)
    found.save(tmp_path / "m.npz")
    again = MiniBatchGaussianMixture.load(tmp_path / "m.npz")
    for one in (found, again):
        one.partial_fit(rows_of(9, 1000))
    assert_same(found, again)
    assert found.n_samples_seen_ == len(X) + 1000
    assert (found.n_passes_, found.n_iter_) == (2, 1)


def test_numbers_of_numpy_are_saved(tmp_path: Path) -> None:
    k, size = np.array([K, 40])
    found = MiniBatchGaussianMixture(k, init_size=size, random_state=0).partial_fit(X[:500])
    found.save(tmp_path / "m.npz")
    again = MiniBatchGaussianMixture.load(tmp_path / "m.npz")
    assert (again.n_components, again.init_size, again.n_samples_seen_) == (K, 40, 500)


@pytest.mark.parametrize(
    "kind", ["full", "spherical", *(pytest.param(kind, marks=slow) for kind in ("tied", "diag"))]
)
def test_a_model_that_is_taken_over_is_not_disturbed(kind: str) -> None:
    random, d = np.random.default_rng(0), 32
    scales = np.ones(3) if kind == "tied" else np.array([0.05, 1, 20])
    each = np.eye(d)[None] * scales[:, None, None]
    covariances = {
        "full": each,
        "tied": np.eye(d),
        "diag": each.diagonal(axis1=1, axis2=2),
        "spherical": scales,
    }[kind]
    means = random.normal(size=(3, d)) * 30
    taken = MiniBatchGaussianMixture.from_parameters(np.full(3, 1 / 3), means, covariances, kind)
    as_it_was = pickle.loads(pickle.dumps(taken))
    label = random.integers(3, size=5000)
    x = means[label] + np.sqrt(scales)[label, None] * random.normal(size=(5000, d))
    best = taken.score(x)
    taken.partial_fit(x[:10], sample_weight=np.zeros(10))
    for name in ("weights_", "means_", "covariances_"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(as_it_was, name))
    taken.partial_fit(x[:1])
    assert taken.score(x) > best - 0.5  # one row among 150, in 32 dimensions
    streamed(taken, x[1:4001], itertools.repeat(100))
    assert taken.score(x[4000:]) > best - 3 * n_parameters(kind, 3, d) / (2 * 4000) - 0.1


@EACH
def test_batch_and_online_go_on_from_each_other(kind: str) -> None:
    first = online(covariance_type=kind).fit(X)
    parts = (first.weights_, first.means_, first.covariances_, kind)
    batch = GaussianMixture.from_parameters(*parts).set_params(warm_start=True, tol=1e-7, max_iter=200).fit(X)
    assert batch.converged_
    assert batch.n_iter_ < 60
    assert batch.score(X) >= first.score(X) - 1e-9
    parts = (batch.weights_, batch.means_, batch.covariances_, kind)
    again = MiniBatchGaussianMixture.from_parameters(*parts)
    np.testing.assert_array_equal(again.means_, batch.means_)
    assert again.n_samples_seen_ == 0
    again.partial_fit(X[:10])
    np.testing.assert_allclose(again.means_, batch.means_, atol=0.3)
    assert again.n_samples_seen_ == 10
    warm = MiniBatchGaussianMixture.from_parameters(*parts).set_params(warm_start=True, random_state=0).fit(X)
    assert warm.n_passes_ == 1
    assert warm.score(X) > batch.score(X) - 1e-3


def test_warm_start_goes_on_and_cold_starts_anew() -> None:
    found = online(warm_start=True).fit(X)
    seen, clock = found.n_samples_seen_, found.online_.clock
    found.fit(X)
    assert found.n_samples_seen_ == 2 * seen
    assert found.online_.clock == clock + len(X)
    assert found.set_params(warm_start=False).fit(X).n_samples_seen_ == seen
    with pytest.raises(DataError, match="needs the shape of the last fit"):
        found.set_params(warm_start=True, n_components=2).fit(X)
    with pytest.raises(DataError, match="needs the shape of the last fit"):
        found.partial_fit(X)


def test_drift_tells_the_batch_in_which_rows_become_others(tmp_path: Path) -> None:
    model = MiniBatchGaussianMixture(K, half_life=2000, random_state=0)
    for seed in range(40):
        model.partial_fit(rows_of(seed, 150))
        assert not model.drift_ > 4
    assert model.moving_log_likelihood_ == pytest.approx(model.score(rows_of(99, 5000)), abs=0.05)
    model.save(tmp_path / "m.npz")
    again = MiniBatchGaussianMixture.load(tmp_path / "m.npz")
    for one in (model, again):
        one.partial_fit(rows_of(40, 150) + np.array([0.0, 1.5]))
    assert model.drift_ == again.drift_ > 6
    given = MiniBatchGaussianMixture.from_parameters(model.weights_, model.means_, model.covariances_)
    assert np.isnan([given.drift_, given.moving_log_likelihood_]).all()
