"""Checkpoints of online fits: one that is stopped anywhere, also within a pass, goes on to the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

import daskgmm
from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from daskgmm.errors import CheckpointError, DataError
from daskgmm.fit import archive
from daskgmm.fit.checkpoint import value_digest
from daskgmm.fit.learning import Learning
from daskgmm.fit.progress import Silent

ROOT = str(Path(daskgmm.__file__).parents[1])
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(3000, 3)) + 4.0 * RANDOM.integers(3, size=(3000, 1))
WEIGHT = RANDOM.uniform(0.5, 2.0, len(X))
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


def chunked(x: Any = X) -> Any:
    return da.from_array(x, chunks=(100, 3))


def bits(model: MiniBatchGaussianMixture) -> tuple[Any, ...]:
    last = model._fitted
    return (
        value_digest((last.mixture, last.online)),
        model.lower_bounds_,
        model.n_iter_,
        model.converged_,
        model.n_passes_,
        model.n_batches_seen_,
        last.next_row,
    )


class Stop(Silent):
    """Raises once so many events have happened: stages, mini-batches and passes."""

    def __init__(self, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.after, self.error, self.name, self.events = after, error, "", 0

    def _event(self) -> None:
        self.events += 1
        if self.events > self.after:
            raise self.error

    def stage(self, name: str, done: int = 0) -> None:
        self.name = name
        self._event()

    def blocks(self, done: int, total: int) -> None:
        if self.name == "em":
            self._event()

    def iteration(self, runs: Any) -> None:
        self._event()


def fresh(place: Any = None, **settings: Any) -> MiniBatchGaussianMixture:
    return MiniBatchGaussianMixture(**(SETTINGS | settings), checkpoint=place)


def stopped(
    place: Any, after: int, x: Any = None, weight: Any = None, **settings: Any
) -> MiniBatchGaussianMixture:
    model = fresh(place, **settings)
    with pytest.raises(KeyboardInterrupt):
        model._fit(chunked() if x is None else x, weight, Stop(after))
    return model


def state_in(place: Path) -> Learning:
    header, arrays = archive.read(place)
    state = archive.unpack(header["state"], arrays)
    assert isinstance(state, Learning)
    return state


def events(**settings: Any) -> int:
    watch = Stop(10**9)
    fresh(**settings)._fit(chunked(), None, watch)
    return watch.events


def test_a_fit_stopped_anywhere_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, many = bits(fresh().fit(chunked())), events()
    assert many > 60
    for after in sorted({0, 1, 2, 3, 4, *range(5, many, 7), many - 1}):
        place = tmp_path / f"{after}"
        stopped(place, after)
        assert bits(fresh(place).fit(chunked())) == whole, after
        assert not list(tmp_path.glob("*.*"))  # neither locks nor parts


@pytest.mark.parametrize(
    "settings",
    [{"covariance_type": t} for t in ("tied", "diag", "spherical")]
    + [
        {"half_life": 500.0},
        {"max_iter": 1},
        {"init_params": "random"},
        {"random_state": np.random.RandomState(5)},
        {"weights_init": np.full(3, 1 / 3), "means_init": X[:3], "precisions_init": np.array([np.eye(3)] * 3)},
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
        return fresh().fit(chunked()).set_params(warm_start=True, checkpoint=place)

    with pytest.raises(KeyboardInterrupt):
        warm(tmp_path / "c")._fit(chunked(), None, Stop(20))
    model = warm(tmp_path / "c").fit(chunked())
    assert bits(model) == bits(warm(None).fit(chunked()))
    with pytest.raises(CheckpointError, match="warm_start"):
        model.fit(chunked())  # it now starts elsewhere


def test_a_finished_fit_is_not_read_and_no_window_twice(reads: Any, tmp_path: Path) -> None:
    def fit(after: int | None) -> int:
        seen = reads(X, (100, 3))
        model = fresh(tmp_path / "c", max_iter=1)
        if after is None:
            model.fit(seen.array)
        else:
            with pytest.raises(KeyboardInterrupt):
                model._fit(seen.array, None, Stop(after))
        return int(seen.total)

    blocks, fingerprint = 30, 3
    first = fit(30)
    window = state_in(tmp_path / "c").place.window
    assert 2 < window < 7
    second = fit(None)
    # Survey and one pass; the window in which it was stopped is read again, those before it are not.
    assert first + second <= 2 * blocks + 2 * fingerprint + 4
    assert second < blocks + fingerprint - 2 * window
    assert fit(None) == 0


def test_a_pass_is_written_at_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, places = archive.write, []

    def noted(place: Any, header: Any, arrays: Any) -> None:
        write(place, header, arrays)
        places.append(state_in(place))

    monkeypatch.setattr(archive, "write", noted)
    fresh(tmp_path / "a", max_iter=1).fit(chunked())
    begun, surveyed, seeded, done = places
    assert begun.run is None
    assert surveyed.survey is not None
    assert seeded.survey is None
    assert seeded.passes is None
    assert done.done
    places.clear()
    with dask.config.set({"daskgmm.checkpoint-interval": "0 s"}):
        fresh(tmp_path / "b", max_iter=1).fit(chunked())
    assert len({(state.place.window, state.place.row) for state in places}) > 20
    assert all(state.survey is None for state in places[2:])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_iter": 4}, "max_iter: 3 there, 4 now"),
        ({"half_life": 100.0}, "half_life: None there, 100.0 now"),
        ({"block_size": 4800}, "window_bytes: 9600 there, 19200 now"),
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
    model = stopped(None, 2)
    assert not hasattr(model, "means_")
    model = stopped(tmp_path / "c", 20)
    run = state_in(tmp_path / "c").run  # the last state, though no pass ended
    assert run is not None
    assert model.means_.tobytes() == run.published.means.tobytes()
    assert (model.n_iter_, model.lower_bound_) == (0, run.bound)
    assert model.n_batches_seen_ == run.n_batches > 10


def test_an_error_leaves_the_estimator_as_it_was() -> None:
    model = fresh().fit(chunked())
    before = bits(model)
    with pytest.raises(ZeroDivisionError):
        model._fit(chunked(X[::-1]), None, Stop(20, ZeroDivisionError))
    assert bits(model) == before


def test_rows_of_no_weight_are_refused_again(tmp_path: Path) -> None:
    start = {"weights_init": np.full(3, 1 / 3), "means_init": X[:3], "precisions_init": np.array([np.eye(3)] * 3)}
    for _ in range(2):
        with pytest.raises(DataError, match="at least one non-zero"):
            fresh(tmp_path / "c", **start).fit(chunked(), sample_weight=np.zeros(len(X)))


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
LONG: dict[str, Any] = SETTINGS | {"tol": 0.0, "max_iter": 8, "init_size": 2000}


def start(*words: Any) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", PROGRAM.format(settings=LONG), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": path, "DASK_DASKGMM__CHECKPOINT_INTERVAL": "10 ms"}
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env=environment)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_a_killed_driver_goes_on_to_the_same_bits(kills: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    whole = bits(_long(None))
    moments = random.Random(0)
    place, out = tmp_path / "c", tmp_path / "out.npz"
    killed = 0
    while killed < kills:
        with start(tmp_path / "x.npy", place, out) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(moments.uniform(0.0, 1.0))
            running = process.poll() is None
            process.send_signal(signal.SIGKILL)
        if running and not out.exists():
            killed += 1
        else:  # too late: once more from the start
            place.unlink(missing_ok=True)
            out.unlink(missing_ok=True)
            continue
        if killed % 5 == 0 or killed == kills:  # a fit of several lives, to its end
            assert bits(_long(place)) == whole
            place.unlink()


def _long(place: Path | None) -> MiniBatchGaussianMixture:
    return MiniBatchGaussianMixture(**LONG, checkpoint=place).fit(chunked())
