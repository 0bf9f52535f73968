"""One writer for a checkpoint: a second fit is refused, and a dead one is in nobody's way for long."""

import errno
import json
import os
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

from daskgmm import GaussianMixture, watching
from daskgmm.errors import CheckpointError, CheckpointInUseError, DataError
from daskgmm.fit.state import State
from daskgmm.store.checkpoint import read
from daskgmm.store.lock import Lease, locked
from daskgmm.store.places import locate
from tests.drivers import bits, kill
from tests.forks import Fork
from tests.listeners import SEEDED, At, Heard
from tests.store.bucket import Bucket

if sys.platform != "win32":
    import fcntl

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has locks of another kind")
RANDOM = np.random.default_rng(0)
X = np.concatenate([RANDOM.normal(size=(300, 3)), RANDOM.normal(3.0, size=(300, 3))])
SETTINGS: dict[str, Any] = {"n_components": 3, "random_state": 0, "tol": 1e-9, "max_iter": 12}

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:Best performing initialization"),
]


@pytest.fixture(scope="module")
def expected() -> tuple[Any, ...]:
    return bits(fit(None))


@pytest.fixture(params=["conditions", "no conditions", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a checkpoint that is not there yet, where an object says who writes it."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/c"
    monkeypatch.setattr(Bucket, "conditions", request.param == "conditions")
    return f"bucket://{tmp_path}/c"


@pytest.fixture(autouse=True)
def lease() -> Iterator[None]:
    with dask.config.set({"daskgmm.checkpoint-lease": "2 s"}):
        yield


def content(url: str) -> bytes | None:
    fs, path = locate(url)
    return fs.cat_file(path) if fs.exists(path) else None


def put(url: str, value: bytes) -> None:
    fs, path = locate(url)
    fs.pipe_file(path, value)


def owner(host: str) -> bytes:
    """A lease of somebody else."""
    return json.dumps({"host": host, "pid": 7, "lease": "other", "puts": 1}).encode()


def fit(place: str | Path | None, **settings: Any) -> GaussianMixture:
    model = GaussianMixture(**(SETTINGS | settings), checkpoint=place)
    model.fit(X)
    return model


def assert_one_writer(place: str, expected: Any) -> None:
    """A second one is refused, and the first goes on."""
    told = []

    def second() -> None:
        with pytest.raises(CheckpointInUseError) as error:
            fit(place)
        told.append(str(error.value))

    with watching(At(SEEDED + 3, second)):
        assert bits(fit(place)) == expected
    (line,) = told
    assert line.endswith(f" writing the checkpoint {place}.")
    assert content(f"{place}.daskgmm-lock") is None
    assert bits(fit(place)) == expected  # it is free


# A file, which has a lock of the system beside it


@posix
def test_a_second_writer_of_a_file_is_refused(tmp_path: Path, expected: Any) -> None:
    assert_one_writer(str(tmp_path / "c"), expected)


@posix
def test_a_lock_whose_holder_is_about_to_end_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may free what a killed process held a moment later."""
    flock, calls = fcntl.flock, [0]

    def busy(handle: int, how: int) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise BlockingIOError
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", busy)
    with locked(tmp_path / "c", print):
        assert calls[0] == 2


@posix
def test_a_lock_that_its_holder_has_just_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened it before that takes the one that is there now: else two would write."""
    place, flock, calls = tmp_path / "c", fcntl.flock, [0]

    def late(handle: int, how: int) -> None:
        calls[0] += 1
        if calls[0] == 1:
            os.unlink(f"{place}.daskgmm-lock")
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(place, print):
        assert calls[0] == 2
        with pytest.raises(CheckpointInUseError, match="Another process is writing"), locked(place, print):
            pass
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("name", ["flock", "open"])
def test_a_place_without_locks_holds_a_checkpoint_all_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Any
) -> None:
    """A file system that knows none, or a folder where none can be made: there the first write tells."""
    opening = os.open

    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def unwritable(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(".daskgmm-lock"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opening(path, *arguments, **options)

    if name == "flock":
        monkeypatch.setattr(fcntl, "flock", refused)
    else:
        monkeypatch.setattr(os, "open", unwritable)
    assert bits(fit(tmp_path / "c")) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"c"}


@posix
def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    program = f"""
import os
from daskgmm.store.lock import locked
with locked({str(tmp_path / "c")!r}, print):
    print("taken", flush=True)
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    with Fork(program) as died:
        told, _ = died.communicate(30)
    assert (told, died.returncode) == ("taken\n", -signal.SIGKILL)
    assert (tmp_path / "c.daskgmm-lock").exists()
    with locked(tmp_path / "c", print):
        pass
    assert list(tmp_path.iterdir()) == []


# A URL, where an object says who writes


def test_a_second_writer_of_a_url_is_refused(url: str, expected: Any) -> None:
    assert_one_writer(url, expected)


def test_of_many_that_begin_at_once_one_goes_on(tmp_path: Path) -> None:
    fs, path = locate(f"bucket://{tmp_path}/c")
    leases = [Lease(fs, path, path) for _ in range(8)]
    ready, over = threading.Barrier(len(leases)), threading.Barrier(len(leases))
    held, refused = [], []

    def take(each: Lease) -> None:
        ready.wait(30)
        try:
            with each:
                held.append(each)
                over.wait(30)
                each.check()
        except CheckpointError:
            refused.append(each)
            over.wait(30)

    threads = [threading.Thread(target=take, args=(each,)) for each in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert (len(held), len(refused)) == (1, 7)
    assert [p.name for p in tmp_path.iterdir()] == []


def test_the_writer_is_named(url: str) -> None:
    told = f"process {os.getpid()} on "
    with locked(url, print), pytest.raises(CheckpointInUseError, match=told), locked(url, print):
        pass


def test_a_lease_that_nobody_renews_runs_out(url: str, expected: Any) -> None:
    fit(f"{url}2", max_iter=0)  # the folder is there
    put(f"{url}.daskgmm-lock", owner("a machine that is gone"))
    heard = Heard()
    with dask.config.set({"daskgmm.checkpoint-lease": "0.2 s"}), watching(heard):
        assert bits(fit(url)) == expected
    assert content(f"{url}.daskgmm-lock") is None
    who = "Another writer (process 7 on a machine that is gone)"
    assert str(heard.events[0]).startswith(f"{who} may be writing the checkpoint {url}: watching it for 0.")


def test_a_fit_that_another_took_over_from_writes_no_more(url: str) -> None:
    before = []

    def slept() -> None:
        put(f"{url}.daskgmm-lock", owner("elsewhere"))
        before.append(content(url))

    model = GaussianMixture(**SETTINGS, checkpoint=url)
    told = r"process 7 on elsewhere\) is writing the checkpoint"
    with pytest.raises(CheckpointInUseError, match=told), watching(At(SEEDED + 3, slept)):
        model.fit(X)
    assert not hasattr(model, "means_")
    assert content(url) == before[0]
    assert content(f"{url}.daskgmm-lock") == owner("elsewhere")  # still theirs


def test_a_lease_that_was_taken_over_is_not_put_anew(tmp_path: Path) -> None:
    fs, path = locate(f"bucket://{tmp_path}/c")
    with dask.config.set({"daskgmm.checkpoint-lease": "0.2 s"}), Lease(fs, path, path) as held:
        fs.pipe_file(f"{path}.daskgmm-lock", owner("elsewhere"))
        held.thread.join(30)
        assert not held.thread.is_alive()
        assert fs.cat_file(f"{path}.daskgmm-lock") == owner("elsewhere")


def test_a_fit_that_slept_while_another_took_over_and_ended_writes_no_more(tmp_path: Path) -> None:
    fs, path = locate(f"bucket://{tmp_path}/c")
    with Lease(fs, path, path) as held:
        held.put_at -= 3  # the lease is for two seconds
        fs.rm_file(f"{path}.daskgmm-lock")
        with pytest.raises(CheckpointError, match="another process may have written the checkpoint"):
            held.check()
        held.thread.join(30)  # it puts no lock anew
        assert not fs.exists(f"{path}.daskgmm-lock")


def test_the_longer_of_two_leases_counts(tmp_path: Path) -> None:
    fs, path = locate(f"bucket://{tmp_path}/c")
    with Lease(fs, path, path), dask.config.set({"daskgmm.checkpoint-lease": "0.1 s"}):
        other = Lease(fs, path, path)
        with pytest.raises(CheckpointError, match="is writing"):
            other.__enter__()


def test_a_store_that_ignores_conditions_does_not_lose_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Bucket.pipe_file
    monkeypatch.setattr(Bucket, "pipe_file", lambda self, path, value, **ignored: put(self, path, value))
    fs, path = locate(f"bucket://{tmp_path}/c")
    with Lease(fs, path, path) as held:
        with pytest.raises(CheckpointError, match="is writing"), Lease(fs, path, path):
            pass
        held.check()


def test_a_lock_that_can_be_neither_made_nor_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any, **__: Any) -> bytes:
        raise FileNotFoundError

    monkeypatch.setattr(Bucket, "cat_file", read)
    fs, path = locate(f"bucket://{tmp_path}/c")
    (tmp_path / "c.daskgmm-lock").write_bytes(b"")
    with dask.config.set({"daskgmm.checkpoint-lease": "0.2 s"}), pytest.raises(DataError, match="neither"):
        Lease(fs, path, path).__enter__()


def test_a_lease_is_put_anew_where_it_was_removed(tmp_path: Path) -> None:
    fs, path = locate(f"bucket://{tmp_path}/c")
    with dask.config.set({"daskgmm.checkpoint-lease": "0.2 s"}), Lease(fs, path, path) as held:
        fs.rm_file(f"{path}.daskgmm-lock")
        held.check()
        while not fs.exists(f"{path}.daskgmm-lock"):  # under the time limit of the test
            time.sleep(0.01)
        assert held.mark in fs.cat_file(f"{path}.daskgmm-lock")


def test_a_store_that_is_away_is_a_warning(tmp_path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"bucket://{tmp_path}/c"

    def away(now: bool) -> Any:
        return lambda: monkeypatch.setattr(Bucket, "away", now)

    with (
        pytest.warns(RuntimeWarning, match="cannot be written: RuntimeError: the endpoint does not answer"),
        watching(At(SEEDED + 5, away(True)), At(SEEDED + 8, away(False))),
    ):
        assert bits(fit(place)) == expected
    found = read(place, State)
    assert found is not None
    assert found[1].done  # written once it was back


def test_a_store_that_is_away_at_the_start_does_not_pass_for_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, "away", True)
    with pytest.raises(OSError, match="does not answer"):
        fit(f"bucket://{tmp_path}/c")


def test_a_bucket_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no place for the checkpoint"):
        fit(f"bucket://{tmp_path}/typo/c")


PROGRAM = """
import sys, warnings
import numpy as np
import tests.store.bucket
from daskgmm import GaussianMixture
warnings.simplefilter("ignore")
data, place, out, settings = sys.argv[1:]
model = GaussianMixture(**eval(settings), checkpoint=place)
print("ready", flush=True)
model.fit(np.load(data)).save(out)
"""


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_a_killed_driver_goes_on_from_a_url_to_the_same_bits(kills: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    settings = SETTINGS | {"tol": 0.0, "max_iter": 400}
    place, out = f"bucket://{tmp_path}/c", tmp_path / "out.npz"
    words = (tmp_path / "x.npy", place, out, repr(settings))
    moments, killed, held = random.Random(0), 0, 0
    while killed < kills:
        kill(Fork(PROGRAM, *words, DASK_DASKGMM__CHECKPOINT_LEASE="0.3s"), moments.uniform(0.3, 0.9))
        if out.exists():  # too late: once more from the start
            out.unlink()
            (tmp_path / "c").unlink()
            continue
        killed += 1
        held += (tmp_path / "c.daskgmm-lock").exists()
    assert held
    with dask.config.set({"daskgmm.checkpoint-lease": "0.3 s"}):
        again = fit(place, **settings)
    assert bits(again) == bits(fit(None, **settings))
