"""Checkpoints: a fit that is stopped anywhere goes on to the same bits; nothing else goes on from its file."""

import errno
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask.delayed import delayed

from daskgmm import GaussianMixture, MiniBatchGaussianMixture, watching
from daskgmm.errors import CheckpointError, CollapseError
from daskgmm.fit.run import EM
from daskgmm.fit.state import State
from daskgmm.model.update import Regularised
from daskgmm.store import files
from daskgmm.store.checkpoint import VERSION, Checkpoint, opened, read
from daskgmm.store.values import digest
from tests.drivers import bits, lives
from tests.forks import Fork
from tests.listeners import SEEDED, stop

RANDOM = np.random.default_rng(0)
X = np.concatenate([RANDOM.normal(size=(300, 3)), RANDOM.normal(3.0, size=(300, 3))])
SETTINGS: dict[str, Any] = {"n_components": 3, "random_state": 0, "tol": 1e-9, "max_iter": 12}

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")


def fit(place: Any = None, x: Any = X, weight: Any = None, **settings: Any) -> GaussianMixture:
    model = GaussianMixture(**(SETTINGS | settings), checkpoint=place)
    model.fit(x, sample_weight=weight)
    return model


def stopped(place: Any, after: int, x: Any = X, weight: Any = None, **settings: Any) -> None:
    """A fit that is interrupted at the state of this number."""
    with pytest.raises(KeyboardInterrupt), watching(stop(after)):
        fit(place, x, weight, **settings)


def states(place: Any) -> State:
    """What a file holds."""
    found = read(place, State)
    assert found is not None
    state: State = found[1]
    return state


@pytest.mark.parametrize("after", [0, 1, 2, 3, 7, 14])
def test_a_stopped_fit_goes_on_to_the_same_bits(after: int, tmp_path: Path) -> None:
    stopped(tmp_path / "c", after)
    assert bits(fit(tmp_path / "c")) == bits(fit())
    assert {path.name for path in tmp_path.iterdir()} == {"c"}


@pytest.mark.parametrize(
    "settings",
    [{"covariance_type": t} for t in ("tied", "diag", "spherical")]
    # Where the sample's own optimum is, EM would be at an end before the second stop.
    + [{"init_params": "subsample", "tol": 0.0}, {"init_params": "random", "n_init": 3}],
)
def test_every_structure_and_start_goes_on(settings: dict[str, Any], tmp_path: Path) -> None:
    # Stopped twice: after the survey, and in EM.
    stopped(tmp_path / "c", 1, **settings)
    stopped(tmp_path / "c", 5, **settings)
    assert bits(fit(tmp_path / "c", **settings)) == bits(fit(**settings))


def test_a_given_start_and_weights_go_on(tmp_path: Path) -> None:
    weight, labels = RANDOM.uniform(size=len(X)), np.arange(len(X)) % 3
    stopped(tmp_path / "c", 1, weight=weight, labels_init=labels)
    again = fit(tmp_path / "c", weight=weight, labels_init=labels)
    assert bits(again) == bits(fit(weight=weight, labels_init=labels))
    with pytest.raises(CheckpointError, match="sample_weight's dtype: '<f8' there, None now"):
        fit(tmp_path / "c", labels_init=labels)


def test_an_online_fit_goes_on_from_a_mini_batch(tmp_path: Path) -> None:
    def learn(place: Any) -> MiniBatchGaussianMixture:
        model = MiniBatchGaussianMixture(3, batch_size=50, max_iter=3, tol=0.0, random_state=0, checkpoint=place)
        model.fit(X)
        return model

    whole = digest(learn(None).online_)
    for after in (0, 1, 2, 5, 14, 20):
        place = tmp_path / str(after)
        with (
            dask.config.set({"daskgmm.checkpoint-interval": "0 s"}),  # each mini-batch, too
            pytest.raises(KeyboardInterrupt),
            watching(stop(after)),
        ):
            learn(place)
        assert states(place).mid_pass == (after > SEEDED and after != 14)
        assert digest(learn(place).online_) == whole, after


def test_states_in_mid_pass_are_written_from_time_to_time_alone(tmp_path: Path) -> None:
    """The rest waits for the end of a pass, an interrupt or an hour."""
    written: list[bytes] = []
    place = tmp_path / "c"
    model = MiniBatchGaussianMixture(3, batch_size=50, max_iter=1, random_state=0, checkpoint=place)
    with (
        dask.config.set({"daskgmm.checkpoint-interval": "1 h"}),
        watching(lambda event: written.append(place.read_bytes())),
    ):
        model.fit(X)
    assert len(set(written)) == 4  # begun, surveyed, seeded, and the pass


def test_where_it_goes_on_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped(tmp_path / "c", 3)
    assert capsys.readouterr().out == ""
    for told in ("The fit goes on, from {}; passes over the rows so far: 2.", "The fit is finished, from {}; "):
        fit(tmp_path / "c", verbose=1)
        assert capsys.readouterr().out.startswith(told.format(tmp_path / "c"))


@pytest.mark.parametrize(
    ("place", "told"),
    [("nosuch://bucket/c", "nosuch://bucket/c cannot be reached: .*nosuch"), ("folder", "folder is a folder")],
)
def test_what_can_be_no_checkpoint(place: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(CheckpointError, match=told):
        fit(place)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_drawn_seed_is_kept(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"random_state": None, "init_params": "random"}
    stopped(tmp_path / "c", 0, **settings)  # before the survey
    copy = (tmp_path / "c").read_bytes()
    fits = []
    for _ in range(2):
        (tmp_path / "c").write_bytes(copy)
        fits.append(bits(fit(tmp_path / "c", **settings)))
    assert fits[0] == fits[1]


def test_no_more_than_one_iteration_is_lost(reads: Any, tmp_path: Path) -> None:
    def passes(after: int | None) -> int:
        seen = reads(X, (200, 3))
        if after is None:
            fit(tmp_path / "c", seen.array)
        else:
            stopped(tmp_path / "c", after, seen.array)
        total: int = seen.total
        return total // 3

    whole = fit().n_passes_
    # Each start reads three blocks for the fingerprint, here all of them.
    assert passes(6) + passes(None) == whole + 2
    assert passes(None) == 0  # finished: not read at all


def test_a_warm_start_goes_on(tmp_path: Path) -> None:
    fit(max_iter=3).save(tmp_path / "model.npz")
    models = [GaussianMixture.load(tmp_path / "model.npz") for _ in range(3)]
    for model in models:
        model.set_params(warm_start=True, checkpoint=tmp_path / "c")
    with pytest.raises(KeyboardInterrupt), watching(stop(2)):
        models[0].fit(X)
    models[2].set_params(checkpoint=None)
    assert bits(models[1].fit(X)) == bits(models[2].fit(X))
    with pytest.raises(CheckpointError, match="warm_start"):
        models[1].fit(X)  # it now starts elsewhere


THREE: dict[str, Any] = {"n_init": 3, "init_params": "random"}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"max_iter": 12}, {"max_iter": 30}),
        ({"tol": 1e-2}, {"tol": 1e-5}),  # at rest before
        ({"tol": 1e-2, "max_iter": 3}, {"tol": 1e-4, "max_iter": 40}),
        ({"max_iter": 3, **THREE}, {"max_iter": 9, **THREE}),
        ({"covariance_type": "tied", "max_iter": 0}, {"covariance_type": "tied", "max_iter": 5}),
    ],
)
def test_a_fit_goes_on_further_as_if_it_had_been_asked_to_before(
    before: dict[str, Any], now: dict[str, Any], tmp_path: Path
) -> None:
    whole = bits(fit(**now))
    for after in (0, 1, 2, 5, 14, None):
        place = tmp_path / f"{after}"
        with suppress(KeyboardInterrupt), watching(*([] if after is None else [stop(after)])):
            fit(place, **before)
        assert bits(fit(place, **now)) == whole, after
        # The file is now of the longer fit.
        with pytest.raises(CheckpointError, match=f"{next(iter(now.keys() & {'max_iter', 'tol'}))}: "):
            fit(place, **before)


def test_a_fit_that_is_at_rest_stays_so(reads: Any, tmp_path: Path) -> None:
    """With more iterations, or a tolerance that its last change does not reach either, not a row is read."""
    whole = fit(tmp_path / "c", tol=1e-2, max_iter=50)
    change = abs(whole.lower_bounds_[-1] - whole.lower_bounds_[-2])
    seen = reads(X, (600, 3))
    again = fit(tmp_path / "c", seen.array, tol=change * 1.01, max_iter=60)
    assert (bits(again), again.converged_, seen.total) == (bits(whole), True, 0)
    assert fit(tmp_path / "c", tol=change, max_iter=60).n_iter_ > whole.n_iter_


def test_several_runs_go_on_to_the_same_bits_in_more_passes(tmp_path: Path) -> None:
    """Runs that were at rest catch up with the others, in passes of their own."""
    fit(tmp_path / "c", tol=1e-2, max_iter=60, **THREE)
    *found, passes = bits(fit(tmp_path / "c", tol=1e-5, max_iter=60, **THREE))
    *expected, fewest = bits(fit(tol=1e-5, max_iter=60, **THREE))
    assert (found, passes >= fewest) == (expected, True)


def test_rows_are_compared_before_a_finished_fit_goes_on(tmp_path: Path) -> None:
    fit(tmp_path / "c", max_iter=3)
    fit(tmp_path / "c", max_iter=3)
    other = X.copy()
    other[300, 0] += 1e-12
    with pytest.raises(CheckpointError, match=r"\n  the rows: their values differ\n"):
        fit(tmp_path / "c", other, max_iter=4)
    assert bits(fit(tmp_path / "c", max_iter=4)) == bits(fit(max_iter=4))


ONLINE: dict[str, Any] = {"n_components": 3, "batch_size": 50, "random_state": 0}
GIVEN: dict[str, Any] = {
    "weights_init": np.full(3, 1 / 3),
    "means_init": X[[0, 200, 400]],
    "precisions_init": np.broadcast_to(np.eye(3), (3, 3, 3)),
}


def learnt(place: Any = None, **settings: Any) -> MiniBatchGaussianMixture:
    model = MiniBatchGaussianMixture(**(ONLINE | settings), checkpoint=place)
    model.fit(X)
    return model


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"tol": 0.0, "max_iter": 2}, {"tol": 0.0, "max_iter": 4}),
        ({"tol": 1.0, "max_iter": 6}, {"tol": 0.0, "max_iter": 6}),
        ({"tol": 1.0, "max_iter": 6}, {"tol": 0.5, "max_iter": 9}),
        ({"max_iter": 1, **GIVEN}, {"max_iter": 3, **GIVEN}),  # no rows are held out
    ],
)
def test_an_online_fit_goes_on_further_likewise(
    before: dict[str, Any], now: dict[str, Any], tmp_path: Path
) -> None:
    whole = learnt(**now)
    for after in (2, 9, 20, None):
        with suppress(KeyboardInterrupt), watching(*([] if after is None else [stop(after)])):
            learnt(tmp_path / f"{after}", **before)
        one = learnt(tmp_path / f"{after}", **now)
        assert digest(one.online_) == digest(whole.online_), after
        assert (one.converged_, one.lower_bounds_) == (whole.converged_, whole.lower_bounds_)
        assert (one.n_iter_, one.n_passes_) == (whole.n_iter_, whole.n_passes_)


def test_one_pass_holds_no_rows_out_for_the_next(tmp_path: Path) -> None:
    learnt(tmp_path / "c", max_iter=1)
    with pytest.raises(CheckpointError, match="held out: None there, 'a tenth of the sample' now"):
        learnt(tmp_path / "c", max_iter=2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_components": 2}, "n_components: 3 there, 2 now"),
        ({"tol": 1e-3}, "tol: 1e-09 there, 0.001 now"),
        ({"max_iter": 11}, "max_iter: 12 there, 11 now"),
        ({"random_state": 1}, "random_state: 0 there, 1 now"),
        ({"means_init": np.zeros((3, 3))}, "means_init: None there, '"),
        ({"block_size": 5000}, r"blocks \[rows, how many\]"),
    ],
)
def test_other_settings_are_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    stopped(tmp_path / "c", 4)
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(CheckpointError, match=told):
        fit(tmp_path / "c", **change)
    assert (tmp_path / "c").read_bytes() == before


def test_all_differences_are_listed(tmp_path: Path) -> None:
    stopped(tmp_path / "c", 4)
    other = X.copy()
    other[300, 0] += 1e-12
    with pytest.raises(CheckpointError, match=r"  tol: .*\n  the rows: their values differ\n"):
        fit(tmp_path / "c", other, tol=1.0)


@pytest.mark.parametrize("row", [0, 300, 599])
def test_other_values_are_refused(row: int, tmp_path: Path) -> None:
    chunks = (200, 3)
    stopped(tmp_path / "c", 4, da.from_array(X, chunks=chunks))
    other = X.copy()
    other[row, 0] = np.nextafter(other[row, 0], 9)
    with pytest.raises(CheckpointError, match="their values differ"):
        fit(tmp_path / "c", da.from_array(other, chunks=chunks))


def test_rows_of_another_layout_are_not_looked_at(tmp_path: Path) -> None:
    stopped(tmp_path / "c", 4)
    poison = da.from_delayed(delayed(lambda: 1 / 0)(), shape=(700, 3), dtype=X.dtype)
    with pytest.raises(CheckpointError, match="rows: 600 there, 700 now"):
        fit(tmp_path / "c", poison)


def test_watching_and_another_name_are_no_difference(tmp_path: Path) -> None:
    stopped(tmp_path / "c", 4)
    (tmp_path / "c").rename(tmp_path / "d")
    assert bits(fit(str(tmp_path / "d"), verbose=1, verbose_interval=5)) == bits(fit())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"x" * 1000])
def test_what_is_no_checkpoint_is_refused_and_kept(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        fit(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == content


def test_a_cut_checkpoint_and_a_model_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "c"
    stopped(place, 4)
    whole = place.read_bytes()
    for size in range(1, len(whole), len(whole) // 20):
        place.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            fit(place)
    fit().save(place)
    with pytest.raises(CheckpointError, match="is a model, not a checkpoint"):
        fit(place)


@pytest.mark.parametrize(("version", "told"), [(VERSION + 1, "Update it"), (VERSION - 1, "Finish that fit with")])
def test_a_file_of_another_version_says_what_to_do(version: int, told: str, tmp_path: Path) -> None:
    stopped(tmp_path / "c", 4)
    header, arrays = files.read(tmp_path / "c", lambda header: True)
    state = files.value_of(header, arrays)
    files.save(tmp_path / "c", {**header, "version": version}, state)
    with pytest.raises(CheckpointError, match=f"checkpoint version {version}, this .* version {VERSION}. {told}"):
        fit(tmp_path / "c")


def test_a_folder_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        fit(tmp_path / "typo" / "c")


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
        with pytest.warns(RuntimeWarning, match=f"cannot be written: .*{os.strerror(code)}"):
            model = fit(tmp_path / "c")
    assert bits(model) == bits(fit())
    assert (tmp_path / "c").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"c"}


def test_an_interrupted_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, count = files.save, [0]

    def interrupted(*arguments: Any) -> None:
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(files, "save", interrupted)
    model = GaussianMixture(**SETTINGS, checkpoint=tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        model.fit(X)
    # Begun, survey, seeds, two iterations; the sixth write was of the third.
    assert states(tmp_path / "c").n_iter == 3


def test_an_error_leaves_the_file_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), watching(stop(6, ZeroDivisionError)):
        fit(tmp_path / "c")
    assert states(tmp_path / "c").n_iter == 4
    assert bits(fit(tmp_path / "c")) == bits(fit())


def test_a_url_holds_a_checkpoint() -> None:
    place = "memory://folder/checkpoint"
    stopped(place, 4)
    assert bits(fit(place)) == bits(fit())


def test_a_refused_write_is_not_made_later(tmp_path: Path) -> None:
    answers = iter([CheckpointError("another")])

    def check() -> None:
        for error in answers:
            raise error

    checkpoint = Checkpoint(tmp_path / "c", {}, check)
    with pytest.raises(CheckpointError, match="another"):
        checkpoint.take(State({}))
    checkpoint.flush()
    assert not (tmp_path / "c").exists()


def test_a_failed_run_comes_back(tmp_path: Path) -> None:
    failure = CollapseError("component 1 collapsed", 1)
    run = EM(fit().mixture_, Regularised(), 0.0, 9, (1.0, 2.0), failure=failure)
    Checkpoint(tmp_path / "c", {}).take(State(np.random.RandomState(0).get_state(legacy=False), 3, None, (run,)))
    (back,) = states(tmp_path / "c").runs
    assert isinstance(back.failure, CollapseError)
    assert (str(back.failure), back.failure.component) == ("component 1 collapsed", 1)
    assert back.done
    assert (back.trace, back.previous) == ((1.0, 2.0), -np.inf)


def test_where_there_is_no_place_states_stay_in_memory() -> None:
    def unasked() -> Any:
        raise AssertionError("no file, no fingerprint")

    with opened(None, State, unasked, unasked, unasked, print) as record:
        assert record.state is None
        for number in range(3):
            record.take(State({}, number))
        last: Any = record.state
    assert last.n_passes == 2


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


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_a_killed_driver_goes_on_to_the_same_bits(kills: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    whole = bits(fit(**LONG))
    place, out = tmp_path / "c", tmp_path / "out.npz"
    program = PROGRAM.format(settings=LONG)
    for _ in lives(lambda: Fork(program, tmp_path / "x.npy", place, out), kills, 0.6, place, out):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert bits(fit(place, **LONG)) == whole
