"""Checkpoints: a fit that is stopped anywhere goes on to the same bits; nothing else goes on from its file."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

import daskgmm
from daskgmm import GaussianMixture
from daskgmm.errors import CheckpointError, CollapseError
from daskgmm.fit import archive
from daskgmm.fit.checkpoint import Checkpoint, State
from daskgmm.fit.progress import Silent
from daskgmm.fit.run import Run

ROOT = str(Path(daskgmm.__file__).parents[1])
RANDOM = np.random.default_rng(0)
X = np.concatenate([RANDOM.normal(size=(300, 3)), RANDOM.normal(3.0, size=(300, 3))])
SETTINGS: dict[str, Any] = {"n_components": 3, "random_state": 0, "tol": 1e-9, "max_iter": 12}

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")


def bits(model: GaussianMixture) -> tuple[Any, ...]:
    arrays = (model.weights_, model.means_, model.covariances_, model.precisions_cholesky_)
    return (*(a.tobytes() for a in arrays), model.lower_bounds_, model.n_iter_, model.converged_, model.n_passes_)


class Stop(Silent):
    """Raises once so many events have happened: stages and iterations."""

    def __init__(self, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.after, self.error = after, error

    def stage(self, name: str, done: int = 0) -> None:
        self.iteration(())

    def iteration(self, runs: Any) -> None:
        self.after -= 1
        if self.after < 0:
            raise self.error


def stopped(place: Any, after: int, x: Any = X, **settings: Any) -> GaussianMixture:
    model = GaussianMixture(**(SETTINGS | settings), checkpoint=place)
    with pytest.raises(KeyboardInterrupt):
        model._fit(x, None, Stop(after))
    return model


@pytest.mark.parametrize("after", [0, 1, 2, 3, 7, 14])
def test_a_stopped_fit_goes_on_to_the_same_bits(after: int, tmp_path: Path) -> None:
    stopped(tmp_path / "c", after)
    assert bits(GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c").fit(X)) == bits(
        GaussianMixture(**SETTINGS).fit(X)
    )
    assert {path.name for path in tmp_path.iterdir()} == {"c"}


@pytest.mark.parametrize(
    "settings",
    [{"covariance_type": t} for t in ("tied", "diag", "spherical")]
    + [{"init_params": "subsample"}, {"init_params": "random", "n_init": 3}],
)
def test_every_structure_and_start_goes_on(settings: dict[str, Any], tmp_path: Path) -> None:
    # Stopped twice: after the survey, and in EM.
    stopped(tmp_path / "c", 1, **settings)
    stopped(tmp_path / "c", 5, **settings)
    again = GaussianMixture(**(SETTINGS | settings), checkpoint=tmp_path / "c").fit(X)
    assert bits(again) == bits(GaussianMixture(**(SETTINGS | settings)).fit(X))


def test_a_given_start_and_weights_go_on(tmp_path: Path) -> None:
    weight, labels = RANDOM.uniform(size=len(X)), np.arange(len(X)) % 3
    settings = SETTINGS | {"labels_init": labels}
    model = GaussianMixture(**settings, checkpoint=tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        model._fit(X, weight, Stop(1))
    assert bits(model.fit(X, sample_weight=weight)) == bits(
        GaussianMixture(**settings).fit(X, sample_weight=weight)
    )
    with pytest.raises(CheckpointError, match="sample_weight's dtype: '<f8' there, None now"):
        model.fit(X)


def test_where_it_goes_on_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped(tmp_path / "c", 3)
    assert capsys.readouterr().out == ""
    for told in ("The fit goes on, from {}; passes over the rows so far: 2.", "The fit is finished, from {}; "):
        GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c", verbose=1).fit(X)
        assert capsys.readouterr().out.startswith(told.format(tmp_path / "c"))


@pytest.mark.parametrize(
    ("place", "told"),
    [("nosuch://bucket/c", "nosuch://bucket/c cannot be reached: .*nosuch"), ("folder", "folder is a folder")],
)
def test_what_can_be_no_checkpoint(place: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(CheckpointError, match=told):
        GaussianMixture(**SETTINGS, checkpoint=place).fit(X)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_drawn_seed_is_kept(tmp_path: Path) -> None:
    settings = SETTINGS | {"random_state": None, "init_params": "random"}
    stopped(tmp_path / "c", 0, **settings)  # before the survey
    copy = (tmp_path / "c").read_bytes()
    fits = []
    for _ in range(2):
        (tmp_path / "c").write_bytes(copy)
        fits.append(bits(GaussianMixture(**settings, checkpoint=tmp_path / "c").fit(X)))
    assert fits[0] == fits[1]


def test_no_more_than_one_iteration_is_lost(reads: Any, tmp_path: Path) -> None:
    def fit(after: int | None) -> int:
        seen = reads(X, (200, 3))
        model = GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c")
        if after is None:
            model.fit(seen.array)
        else:
            with pytest.raises(KeyboardInterrupt):
                model._fit(seen.array, None, Stop(after))
        return seen.total // 3

    whole = GaussianMixture(**SETTINGS).fit(X).n_passes_
    # Each start reads three blocks for the fingerprint, here all of them.
    assert fit(6) + fit(None) == whole + 2
    assert fit(None) == 0  # finished: not read at all


def test_a_warm_start_goes_on(tmp_path: Path) -> None:
    first = GaussianMixture(**(SETTINGS | {"max_iter": 3})).fit(X)
    settings = {"warm_start": True, "checkpoint": tmp_path / "c"}
    first.save(tmp_path / "model.npz")
    models = [GaussianMixture.load(tmp_path / "model.npz") for _ in range(3)]
    for model in models:
        model.set_params(**settings)
    with pytest.raises(KeyboardInterrupt):
        models[0]._fit(X, None, Stop(2))
    models[2].set_params(checkpoint=None)
    assert bits(models[1].fit(X)) == bits(models[2].fit(X))
    with pytest.raises(CheckpointError, match="warm_start"):
        models[1].fit(X)  # it now starts elsewhere


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_components": 2}, "n_components: 3 there, 2 now"),
        ({"tol": 1e-3}, "tol: 1e-09 there, 0.001 now"),
        ({"random_state": 1}, "random_state: 0 there, 1 now"),
        ({"means_init": np.zeros((3, 3))}, "means_init: None there, '"),
        ({"block_size": 5000}, r"blocks \[rows, how many\]"),
    ],
)
def test_other_settings_are_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    stopped(tmp_path / "c", 4)
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(CheckpointError, match=told):
        GaussianMixture(**(SETTINGS | change), checkpoint=tmp_path / "c").fit(X)
    assert (tmp_path / "c").read_bytes() == before


def test_all_differences_are_listed(tmp_path: Path) -> None:
    stopped(tmp_path / "c", 4)
    other = X.copy()
    other[300, 0] += 1e-12
    model = GaussianMixture(**(SETTINGS | {"tol": 1.0}), checkpoint=tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"  tol: .*\n  the rows: their values differ\n"):
        model.fit(other)


@pytest.mark.parametrize("row", [0, 300, 599])
def test_other_values_are_refused(row: int, tmp_path: Path) -> None:
    chunks = (200, 3)
    stopped(tmp_path / "c", 4, da.from_array(X, chunks=chunks))
    other = X.copy()
    other[row, 0] = np.nextafter(other[row, 0], 9)
    with pytest.raises(CheckpointError, match="their values differ"):
        GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c").fit(da.from_array(other, chunks=chunks))


def test_rows_of_another_layout_are_not_looked_at(tmp_path: Path) -> None:
    stopped(tmp_path / "c", 4)
    poison = da.from_delayed(dask.delayed(lambda: 1 / 0)(), shape=(700, 3), dtype=X.dtype)
    with pytest.raises(CheckpointError, match="rows: 600 there, 700 now"):
        GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c").fit(poison)


def test_watching_and_another_name_are_no_difference(tmp_path: Path) -> None:
    stopped(tmp_path / "c", 4)
    (tmp_path / "c").rename(tmp_path / "d")
    GaussianMixture(**SETTINGS, verbose=1, verbose_interval=5, checkpoint=str(tmp_path / "d")).fit(X)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"x" * 1000])
def test_what_is_no_checkpoint_is_refused_and_kept(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        GaussianMixture(checkpoint=tmp_path / "c").fit(X)
    assert (tmp_path / "c").read_bytes() == content


def test_a_cut_checkpoint_and_a_model_are_refused(tmp_path: Path) -> None:
    model = stopped(tmp_path / "c", 4)
    whole = (tmp_path / "c").read_bytes()
    for size in range(1, len(whole), len(whole) // 20):
        (tmp_path / "c").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c").fit(X)
    model.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c").fit(X)


def test_a_folder_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        GaussianMixture(checkpoint=tmp_path / "typo" / "c").fit(X)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    class Second(Silent):
        def iteration(self, runs: Any) -> None:
            with pytest.raises(CheckpointError, match="Another fit is writing"):
                GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c").fit(X)
            raise InterruptedError  # so that the test knows it came here

    with pytest.raises(InterruptedError):
        GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c")._fit(X, None, Second())
    GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c").fit(X)  # it is free again


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_a_warning_and_the_old_file_whole(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path / "c", 4)
    before = (tmp_path / "c").read_bytes()

    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        model = GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c")
        with pytest.warns(RuntimeWarning, match=f"cannot be written: .*{os.strerror(code)}"):
            model.fit(X)
    assert bits(model) == bits(GaussianMixture(**SETTINGS).fit(X))
    assert (tmp_path / "c").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"c"}


def test_an_interrupted_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, count = archive.write, [0]

    def interrupted(*arguments: Any) -> None:
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(archive, "write", interrupted)
    model = GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        model.fit(X)
    # Begun, survey, seeds, two iterations; the sixth write was of the third.
    header, arrays = archive.read(tmp_path / "c")
    assert archive.unpack(header["state"], arrays).runs[0].n_iter == 3
    assert model.n_iter_ == 3


def test_an_interrupt_leaves_the_best_so_far(tmp_path: Path) -> None:
    model = GaussianMixture(**SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        model._fit(X, None, Stop(2))
    assert not hasattr(model, "means_")
    with pytest.raises(KeyboardInterrupt):
        model._fit(X, None, Stop(6))
    five = GaussianMixture(**(SETTINGS | {"max_iter": 4})).fit(X)
    assert (model.n_iter_, model.n_passes_) == (4, 5)
    assert model.means_.tobytes() == five.means_.tobytes()


def test_an_error_leaves_the_estimator_as_it_was() -> None:
    model = GaussianMixture(**SETTINGS).fit(X)
    before = bits(model)
    with pytest.raises(ZeroDivisionError):
        model._fit(X[::2], None, Stop(6, ZeroDivisionError))
    assert bits(model) == before


def test_a_url_holds_a_checkpoint() -> None:
    place = "memory://folder/checkpoint"
    stopped(place, 4)
    assert bits(GaussianMixture(**SETTINGS, checkpoint=place).fit(X)) == bits(GaussianMixture(**SETTINGS).fit(X))


def test_a_refused_write_is_not_made_later(tmp_path: Path) -> None:
    answers = iter([CheckpointError("another")])

    def check() -> None:
        for error in answers:
            raise error

    checkpoint = Checkpoint(tmp_path / "c", {}, check)
    with pytest.raises(CheckpointError, match="another"):
        checkpoint.keep(State({}))
    checkpoint.flush()
    assert not (tmp_path / "c").exists()


def test_a_failed_run_comes_back(tmp_path: Path) -> None:
    mixture = GaussianMixture(**SETTINGS).fit(X)._fitted.mixture
    run = Run(mixture, 0.0, 9, 0.0, (1.0, 2.0), failure=CollapseError("component 1 collapsed", 1))
    checkpoint = Checkpoint(tmp_path / "c", {})
    checkpoint.keep(State({}, 3, None, (run,)))
    header, arrays = archive.read(tmp_path / "c")
    (back,) = archive.unpack(header["state"], arrays).runs
    assert (str(back.failure), back.failure.component) == ("component 1 collapsed", 1)
    assert back.done
    assert (back.trace, back.previous) == ((1.0, 2.0), -np.inf)


def test_the_file_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    sizes = []
    for many in (1, 20):
        stopped(tmp_path / f"{many}", 6, np.concatenate([X] * many))
        sizes.append((tmp_path / f"{many}").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 300


# A driver that is killed

PROGRAM = """
import sys, warnings
import numpy as np
from daskgmm import GaussianMixture
warnings.simplefilter("ignore")
data, place, out = sys.argv[1:]
settings = {settings!r}
print("ready", flush=True)
GaussianMixture(**settings, checkpoint=place).fit(np.load(data)).save(out)
"""
LONG: dict[str, Any] = SETTINGS | {"tol": 0.0, "max_iter": 150}


def start(*words: Any) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", PROGRAM.format(settings=LONG), *map(str, words)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_a_killed_driver_goes_on_to_the_same_bits(kills: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    whole = bits(GaussianMixture(**LONG).fit(X))
    moments = random.Random(0)
    place, out = tmp_path / "c", tmp_path / "out.npz"
    killed = 0
    while killed < kills:
        with start(tmp_path / "x.npy", place, out) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(moments.uniform(0.0, 0.6))
            running = process.poll() is None
            process.send_signal(signal.SIGKILL)
        if running and not out.exists():
            killed += 1
        else:  # too late: once more from the start
            place.unlink(missing_ok=True)
            out.unlink(missing_ok=True)
            continue
        if killed % 5 == 0 or killed == kills:  # a fit of several lives, to its end
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert bits(GaussianMixture(**LONG, checkpoint=place).fit(X)) == whole
            place.unlink()
