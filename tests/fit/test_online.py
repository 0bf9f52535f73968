"""Online fits of stored rows: passes, and checkpoints from which a fit that was stopped anywhere goes on."""

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

from daskgmm import GaussianMixture, MiniBatchGaussianMixture, watching
from daskgmm.compute.rows import as_rows
from daskgmm.compute.threads import Threads
from daskgmm.errors import CheckpointError, DataError
from daskgmm.fit.events import Event, Reached, Stage
from daskgmm.fit.online import Passes, Position
from daskgmm.fit.state import State
from daskgmm.fit.survey import RowSample, Threshold
from daskgmm.store.checkpoint import read
from daskgmm.store.values import digest
from tests.drivers import lives
from tests.forks import Fork
from tests.listeners import SEEDED, Heard, stop

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(3000, 3)) + 4.0 * RANDOM.integers(3, size=(3000, 1))
WEIGHT = RANDOM.uniform(0.5, 2.0, len(X))
BLOCKS = 30
# A window holds four blocks of 100 rows: eight windows for each pass.
SETTINGS: dict[str, Any] = {
    "n_components": 3,
    "random_state": 0,
    "max_iter": 3,
    "tol": 0.0,
    "init_size": 400,
    "batch_size": 40,
    "block_size": 2400,
}
GIVEN = {"weights_init": np.full(3, 1 / 3), "means_init": X[:3], "precisions_init": np.array([np.eye(3)] * 3)}


def chunked(x: Any = X) -> Any:
    return da.from_array(x, chunks=(100, 3))


def fresh(place: Any = None, **settings: Any) -> MiniBatchGaussianMixture:
    return MiniBatchGaussianMixture(**(SETTINGS | settings), checkpoint=place)


def bits(model: MiniBatchGaussianMixture) -> tuple[Any, ...]:
    return (
        digest((model.mixture_, model.online_)),
        model.lower_bounds_,
        model.n_iter_,
        model.converged_,
        model.n_passes_,
        model.n_batches_seen_,
        model.next_row_,
    )


def stopped(
    place: Any, number: int, x: Any = None, weight: Any = None, **settings: Any
) -> MiniBatchGaussianMixture:
    """A fit that was stopped at its state of this number: that after mini-batch i is number SEEDED + i."""
    model = fresh(place, **settings)
    with pytest.raises(KeyboardInterrupt), watching(stop(number)):
        model.fit(chunked() if x is None else x, sample_weight=weight)
    return model


def state_in(place: Path) -> State:
    found = read(place, State)
    assert found is not None
    state = found[1]
    assert isinstance(state, State)
    return state


def passes_in(state: State) -> Passes:
    (passes,) = state.runs
    assert isinstance(passes, Passes)
    return passes


# Passes


def test_every_block_is_read_once_for_each_pass(reads: Any) -> None:
    for settings, passes in ((GIVEN | {"max_iter": 1}, 1), ({"max_iter": 1}, 2), ({"max_iter": 3}, 4)):
        seen = reads(X, (100, 3))
        model = fresh(**settings).fit(seen.array)
        assert seen.counts == dict.fromkeys(range(BLOCKS), passes)
        assert model.n_passes_ == passes
        assert model.n_batches_seen_ > 10


@pytest.mark.timeout(120)
def test_threads_and_a_client_give_the_same_bits(clusters: Any) -> None:
    with dask.config.set(scheduler="synchronous"):
        wanted = bits(fresh().fit(chunked()))
    assert bits(fresh().fit(chunked())) == wanted
    with clusters(2, False).as_current():
        assert bits(fresh().fit(chunked())) == wanted


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_a_bound_is_the_mean_over_a_pass_before_rows_were_learnt(weight: Any) -> None:
    heard = Heard()
    with watching(heard):
        model = fresh(**GIVEN).fit(chunked(), sample_weight=weight)
    totals, clock = np.zeros((3, 2)), 400.0  # the start counts as init_size rows
    for state in heard.states:
        if state.mid_pass:
            run = passes_in(state).run
            totals[state.n_passes] += (run.clock - clock) * np.array([run.bound, 1])
            clock = run.clock
    np.testing.assert_allclose(totals[:, 1], len(X) if weight is None else weight.sum(), rtol=1e-12)
    np.testing.assert_allclose(model.lower_bounds_, totals[:, 0] / totals[:, 1], rtol=1e-12)
    assert model.lower_bound_ == model.lower_bounds_[-1]


def test_bad_values_are_told_by_the_block_that_holds_them() -> None:
    x = X.copy()
    x[557, 1] = np.nan
    for settings in ({}, GIVEN):  # found by the survey, and by a mini-batch
        with pytest.raises(DataError, match=r"NaN: block 5, row\(s\) 557"):
            fresh(**settings).fit(chunked(x))


def test_rows_of_no_weight_are_refused_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(DataError, match="at least one non-zero"):
            fresh(tmp_path / "c", **GIVEN).fit(chunked(), sample_weight=np.zeros(len(X)))


@pytest.mark.parametrize("size", [400, 5000])
@pytest.mark.parametrize("every", [2, 10])
def test_a_sample_is_parted_by_what_is_held_out(every: int, size: int) -> None:
    rows = as_rows(chunked(), weight=WEIGHT)
    sample = Threads().reduce(rows, lambda block: RowSample.of(block, 3, Threshold(size)))
    x, weight = sample.points()
    assert weight is not None
    held = np.arange(len(x)) % every == every - 1
    for part, chosen in zip(sample.hold_out(every), (~held, held), strict=True):
        some, own = part.points()
        assert own is not None
        np.testing.assert_array_equal(some, x[chosen])
        np.testing.assert_array_equal(X[part.position[part.chosen]], some)
        np.testing.assert_allclose(own / own[0], weight[chosen] / weight[chosen][0], rtol=1e-12)


def test_held_out_rows_are_neither_learnt_nor_part_of_the_start() -> None:
    heard = Heard()
    with watching(heard):
        model = fresh().fit(chunked())
    survey, passes = heard.states[1].survey, passes_in(heard.states[SEEDED])
    assert survey is not None
    assert passes.held_out is not None
    out = len(passes.held_out.chosen)
    assert out == len(survey.sample.chosen) // 10
    assert passes.run.clock == len(survey.sample.chosen) - out
    assert model.n_samples_seen_ == 3 * (len(X) - out)
    assert set(passes.held_out.position) <= set(survey.sample.position)


# Checkpoints


class StopAnywhere:
    """Stops a fit once so many things have happened: stages, blocks, states."""

    def __init__(self, after: int) -> None:
        self.after, self.events = after, 0

    def __call__(self, event: Event) -> None:
        if event != Stage("compiling"):  # only with a cold cache
            self.events += 1
        if self.events > self.after:
            raise KeyboardInterrupt


def test_a_fit_stopped_anywhere_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    count = StopAnywhere(10**9)
    with watching(count):
        whole = bits(fresh().fit(chunked()))
    assert count.events > 100
    for after in sorted({*range(0, 100, 23), *range(100, count.events, 59), count.events - 1}):
        place = tmp_path / f"{after}"
        with pytest.raises(KeyboardInterrupt), watching(StopAnywhere(after)):
            fresh(place).fit(chunked())
        assert bits(fresh(place).fit(chunked())) == whole, after
        assert not list(tmp_path.glob("*.*"))  # neither locks nor parts


@pytest.mark.parametrize(
    "settings",
    [
        {"covariance_type": "tied"},
        {"covariance_type": "diag"},
        {"covariance_type": "spherical"},
        {"half_life": 500.0},
        {"max_iter": 1},
        {"init_params": "random"},
        {"random_state": np.random.RandomState(5)},
        GIVEN,
    ],
    ids=lambda settings: next(iter(settings)) + str(settings.get("covariance_type", "")),
)
def test_every_kind_of_fit_goes_on(settings: dict[str, Any], tmp_path: Path) -> None:
    source = settings.get("random_state")
    before = source.get_state() if source is not None else None
    whole = bits(fresh(**settings).fit(chunked(), sample_weight=WEIGHT))
    if source is not None:
        source.set_state(before)
    # Stopped twice: in the first pass, and later.
    stopped(tmp_path / "c", 9, weight=WEIGHT, **settings)
    stopped(tmp_path / "c", 11, weight=WEIGHT, **settings)
    assert bits(fresh(tmp_path / "c", **settings).fit(chunked(), sample_weight=WEIGHT)) == whole


def test_unknown_chunk_sizes_go_on(tmp_path: Path) -> None:
    x = chunked()
    x = x[x[:, 0] > -9.0]
    assert np.isnan(x.shape[0])
    stopped(tmp_path / "c", 20, x)
    assert bits(fresh(tmp_path / "c").fit(x)) == bits(fresh().fit(x))


def test_a_warm_start_goes_on(tmp_path: Path) -> None:
    def warm(place: Path | None) -> MiniBatchGaussianMixture:
        model: MiniBatchGaussianMixture = fresh().fit(chunked())
        model.set_params(warm_start=True, checkpoint=place)
        return model

    with pytest.raises(KeyboardInterrupt), watching(stop(20)):
        warm(tmp_path / "c").fit(chunked())
    model = warm(tmp_path / "c").fit(chunked())
    assert bits(model) == bits(warm(None).fit(chunked()))
    with pytest.raises(CheckpointError, match="warm_start"):
        model.fit(chunked())  # it now starts elsewhere


def test_a_finished_fit_is_not_read_and_no_window_twice(reads: Any, tmp_path: Path) -> None:
    def fit(number: int | None) -> int:
        seen = reads(X, (100, 3))
        if number is None:
            fresh(tmp_path / "c", max_iter=1).fit(seen.array)
        else:
            stopped(tmp_path / "c", number, seen.array, max_iter=1)
        return int(seen.total)

    fingerprint = 3
    first = fit(30)
    window = passes_in(state_in(tmp_path / "c")).position.window
    assert 2 < window < 7
    second = fit(None)
    # Survey and one pass; the window in which it was stopped is read again, those before it are not.
    assert first + second <= 2 * BLOCKS + 2 * fingerprint + 4
    assert second < BLOCKS + fingerprint - 2 * window
    assert fit(None) == 0


def written(place: Path, interval: str) -> list[State]:
    """What the file holds in the course of a fit of one pass."""
    found: dict[str, State] = {}

    def look(event: Event) -> None:
        if isinstance(event, Reached):
            found.setdefault(digest(state := state_in(place)), state)

    with dask.config.set({"daskgmm.checkpoint-interval": interval}), watching(look):
        fresh(place, max_iter=1).fit(chunked())
    return list(found.values())


def test_a_pass_is_written_at_intervals(tmp_path: Path) -> None:
    begun, surveyed, seeded, done = written(tmp_path / "a", "1 h")
    assert (begun.survey, begun.runs) == (None, ())
    assert surveyed.survey is not None
    for state in (seeded, done):
        assert state.survey is None
        assert passes_in(state).position == Position()
    assert not passes_in(seeded).moved
    assert done.done
    states = written(tmp_path / "b", "0 s")
    places = [passes_in(state).position for state in states[SEEDED:]]
    assert len({(place.window, place.row) for place in places}) > 20
    assert all(state.survey is None for state in states[SEEDED:])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_iter": 2}, "max_iter: 3 there, 2 now"),
        ({"half_life": 100.0}, "half_life: None there, 100.0 now"),
        ({"block_size": 4800}, "block_size: 2400 there, 4800 now"),
        ({"means_init": np.zeros((3, 3))}, "means_init: None there, '"),
    ],
)
def test_other_settings_are_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    stopped(tmp_path / "c", 9)
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(CheckpointError, match=told):
        fresh(tmp_path / "c", **change).fit(chunked())
    assert (tmp_path / "c").read_bytes() == before


def test_other_rows_and_another_estimator_are_refused(tmp_path: Path) -> None:
    stopped(tmp_path / "c", 9)
    other = X.copy()
    other[-1, 0] = np.nextafter(other[-1, 0], 9)
    with pytest.raises(CheckpointError, match="their values differ"):
        fresh(tmp_path / "c").fit(chunked(other))
    told = "estimator: 'MiniBatchGaussianMixture' there, 'GaussianMixture' now"
    with pytest.raises(CheckpointError, match=told):
        GaussianMixture(3, checkpoint=tmp_path / "c").fit(chunked())


def test_an_interrupt_leaves_what_was_learnt(tmp_path: Path) -> None:
    assert not hasattr(stopped(None, SEEDED), "means_")
    model = stopped(tmp_path / "c", 20)
    run = passes_in(state_in(tmp_path / "c")).run  # the last state, though no pass ended
    assert model.means_.tobytes() == run.published.means.tobytes()
    assert (model.n_iter_, model.lower_bound_) == (0, run.bound)
    assert model.n_batches_seen_ == run.n_batches == 20 - SEEDED


def test_an_error_leaves_the_estimator_as_it_was() -> None:
    model = fresh().fit(chunked())
    before = bits(model)
    with pytest.raises(ZeroDivisionError), watching(stop(20, ZeroDivisionError)):
        model.fit(chunked(X[::-1]))
    assert bits(model) == before


# A driver that is killed

PROGRAM = """
import sys, warnings
import dask.array as da, numpy as np
from daskgmm import MiniBatchGaussianMixture
warnings.simplefilter("ignore")
data, place, out = sys.argv[1:]
settings = {settings!r}
x = da.from_array(np.load(data), chunks=(100, 3))
print("ready", flush=True)
MiniBatchGaussianMixture(**settings, checkpoint=place).fit(x).save(out)
"""
LONG: dict[str, Any] = SETTINGS | {"max_iter": 8, "init_size": 2000}


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_a_killed_driver_goes_on_to_the_same_bits(kills: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    whole = bits(fresh(**LONG).fit(chunked()))
    place, out = tmp_path / "c", tmp_path / "out.npz"
    program = PROGRAM.format(settings=LONG)
    often: dict[str, Any] = {"DASK_DASKGMM__CHECKPOINT_INTERVAL": "10 ms"}
    for _ in lives(lambda: Fork(program, tmp_path / "x.npy", place, out, **often), kills, 1.0, place, out):
        assert bits(fresh(place, **LONG).fit(chunked())) == whole
