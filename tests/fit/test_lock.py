"""One writer on an object store: a second fit is refused, and a dead one is in nobody's way for long."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
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

import daskgmm
from daskgmm import GaussianMixture
from daskgmm.errors import CheckpointError
from daskgmm.fit import archive
from daskgmm.fit.checkpoint import read
from daskgmm.fit.lock import Lease
from daskgmm.fit.progress import Silent
from tests.fit.bucket import Bucket

RANDOM = np.random.default_rng(0)
X = np.concatenate([RANDOM.normal(size=(300, 3)), RANDOM.normal(3.0, size=(300, 3))])
SETTINGS: dict[str, Any] = {"n_components": 3, "random_state": 0, "tol": 1e-9, "max_iter": 12}

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:Best performing initialization"),
]


def bits(model: GaussianMixture) -> tuple[Any, ...]:
    return (model.means_.tobytes(), model.covariances_.tobytes(), model.lower_bounds_, model.n_passes_)


@pytest.fixture(scope="module")
def expected() -> tuple[Any, ...]:
    return bits(GaussianMixture(**SETTINGS).fit(X))


@pytest.fixture(params=["conditions", "no conditions", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a checkpoint that is not there yet."""
    if request.param == "memory":
        yield f"memory://{uuid.uuid4().hex}/c"
    else:
        monkeypatch.setattr(Bucket, "conditions", request.param == "conditions")
        yield f"bucket://{tmp_path}/c"


@pytest.fixture(autouse=True)
def lease() -> Iterator[None]:
    with dask.config.set({"daskgmm.checkpoint-lease": "2 s"}):
        yield


def content(url: str) -> bytes | None:
    fs, path = archive.locate(url)
    return fs.cat_file(path) if fs.exists(path) else None


def put(url: str, value: bytes) -> None:
    fs, path = archive.locate(url)
    fs.pipe_file(path, value)


def owner(host: str) -> bytes:
    """A lease of somebody else."""
    return json.dumps({"host": host, "pid": 7, "lease": "other", "puts": 1}).encode()


class Once(Silent):
    """Calls something after the third iteration."""

    def __init__(self, what: Any) -> None:
        self.left, self.what = 3, what

    def iteration(self, runs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.what()


def test_a_second_writer_is_refused_and_the_first_goes_on(place: str, expected: Any) -> None:
    told = []

    def second() -> None:
        with pytest.raises(CheckpointError) as error:
            GaussianMixture(**SETTINGS, checkpoint=place).fit(X)
        told.append(str(error.value))

    model = GaussianMixture(**SETTINGS, checkpoint=place)._fit(X, None, Once(second))
    assert bits(model) == expected
    (line,) = told
    assert f"process {os.getpid()} on " in line
    assert line.endswith(f"is writing the checkpoint {place}.")
    assert content(f"{place}.lock") is None
    assert bits(GaussianMixture(**SETTINGS, checkpoint=place).fit(X)) == expected  # it is free


def test_of_many_that_begin_at_once_one_goes_on(tmp_path: Path) -> None:
    fs, path = archive.locate(f"bucket://{tmp_path}/c")
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


def test_a_lease_that_nobody_renews_runs_out(
    place: str, expected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    GaussianMixture(**(SETTINGS | {"max_iter": 0}), checkpoint=f"{place}2").fit(X)  # the folder is there
    put(f"{place}.lock", owner("a machine that is gone"))
    with dask.config.set({"daskgmm.checkpoint-lease": "0.2 s"}):
        assert bits(GaussianMixture(**SETTINGS, checkpoint=place, verbose=1).fit(X)) == expected
    assert content(f"{place}.lock") is None
    told = capsys.readouterr().out
    assert told.startswith(
        f"Another fit (process 7 on a machine that is gone) may be writing {place}: watching it for 0."
    )


def test_a_fit_that_another_took_over_from_writes_no_more(place: str) -> None:
    before = []

    def slept() -> None:
        put(f"{place}.lock", owner("elsewhere"))
        before.append(content(place))

    model = GaussianMixture(**SETTINGS, checkpoint=place)
    with pytest.raises(CheckpointError, match=r"process 7 on elsewhere\) is writing the checkpoint"):
        model._fit(X, None, Once(slept))
    assert not hasattr(model, "means_")
    assert content(place) == before[0]
    assert content(f"{place}.lock") == owner("elsewhere")  # still theirs


def test_a_lease_that_was_taken_over_is_not_put_anew(tmp_path: Path) -> None:
    fs, path = archive.locate(f"bucket://{tmp_path}/c")
    with dask.config.set({"daskgmm.checkpoint-lease": "0.2 s"}), Lease(fs, path, path) as held:
        fs.pipe_file(f"{path}.lock", owner("elsewhere"))
        held.thread.join(30)
        assert not held.thread.is_alive()
        assert fs.cat_file(f"{path}.lock") == owner("elsewhere")


def test_a_fit_that_slept_while_another_took_over_and_ended_writes_no_more(tmp_path: Path) -> None:
    fs, path = archive.locate(f"bucket://{tmp_path}/c")
    with Lease(fs, path, path) as held:
        held.put_at -= 3  # the lease is for two seconds
        fs.rm_file(f"{path}.lock")
        with pytest.raises(CheckpointError, match="another may have written the checkpoint"):
            held.check()
        held.thread.join(30)  # it puts no lock anew
        assert not fs.exists(f"{path}.lock")


def test_the_longer_of_two_leases_counts(tmp_path: Path) -> None:
    fs, path = archive.locate(f"bucket://{tmp_path}/c")
    with Lease(fs, path, path), dask.config.set({"daskgmm.checkpoint-lease": "0.1 s"}):
        other = Lease(fs, path, path)
        with pytest.raises(CheckpointError, match="is writing"):
            other.__enter__()


def test_a_store_that_ignores_conditions_does_not_lose_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Bucket.pipe_file
    monkeypatch.setattr(Bucket, "pipe_file", lambda self, path, value, **ignored: put(self, path, value))
    fs, path = archive.locate(f"bucket://{tmp_path}/c")
    with Lease(fs, path, path) as held:
        with pytest.raises(CheckpointError, match="is writing"), Lease(fs, path, path):
            pass
        held.check()


def test_a_lock_that_can_be_neither_made_nor_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> bytes:
        raise FileNotFoundError

    monkeypatch.setattr(Bucket, "cat_file", read)
    fs, path = archive.locate(f"bucket://{tmp_path}/c")
    (tmp_path / "c.lock").write_bytes(b"")
    with dask.config.set({"daskgmm.checkpoint-lease": "0.2 s"}), pytest.raises(CheckpointError, match="neither"):
        Lease(fs, path, path).__enter__()


def test_a_lease_is_put_anew_where_it_was_removed(tmp_path: Path) -> None:
    fs, path = archive.locate(f"bucket://{tmp_path}/c")
    with dask.config.set({"daskgmm.checkpoint-lease": "0.2 s"}), Lease(fs, path, path) as held:
        fs.rm_file(f"{path}.lock")
        held.check()
        while not fs.exists(f"{path}.lock"):  # under the time limit of the test
            time.sleep(0.01)
        assert held.mark in fs.cat_file(f"{path}.lock")


def test_a_store_that_is_away_is_a_warning(tmp_path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"bucket://{tmp_path}/c"

    class Away(Silent):
        left = 12

        def iteration(self, runs: Any) -> None:
            self.left -= 1
            monkeypatch.setattr(Bucket, "away", 4 < self.left < 8)

    model = GaussianMixture(**SETTINGS, checkpoint=place)
    with pytest.warns(RuntimeWarning, match="cannot be written: RuntimeError: the endpoint does not answer"):
        model._fit(X, None, Away())
    assert bits(model) == expected
    found = read(place)
    assert found is not None
    assert found[1].done  # written once it was back


def test_a_store_that_is_away_at_the_start_does_not_pass_for_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, "away", True)
    with pytest.raises(RuntimeError, match="does not answer"):
        GaussianMixture(**SETTINGS, checkpoint=f"bucket://{tmp_path}/c").fit(X)


def test_a_bucket_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no place for the checkpoint"):
        GaussianMixture(**SETTINGS, checkpoint=f"bucket://{tmp_path}/typo/c").fit(X)


PROGRAM = """
import sys, warnings
import numpy as np
import tests.fit.bucket
from daskgmm import GaussianMixture
warnings.simplefilter("ignore")
data, place, out, settings = sys.argv[1:]
model = GaussianMixture(**eval(settings), checkpoint=place)
print("ready", flush=True)
model.fit(np.load(data)).save(out)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_a_killed_driver_goes_on_from_a_url_to_the_same_bits(kills: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    settings = SETTINGS | {"tol": 0.0, "max_iter": 400}
    place, out = f"bucket://{tmp_path}/c", tmp_path / "out.npz"
    root = str(Path(daskgmm.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "DASK_DASKGMM__CHECKPOINT_LEASE": "0.3s"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "x.npy"), place, str(out), repr(settings)]
    moments, killed, held = random.Random(0), 0, 0
    while killed < kills:
        with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(moments.uniform(0.3, 0.9))
            process.send_signal(signal.SIGKILL)
        if out.exists():  # too late: once more from the start
            out.unlink()
            (tmp_path / "c").unlink()
            continue
        killed += 1
        held += (tmp_path / "c.lock").exists()
    assert held
    with dask.config.set({"daskgmm.checkpoint-lease": "0.3 s"}):
        again = GaussianMixture(**settings, checkpoint=place).fit(X)
    assert bits(again) == bits(GaussianMixture(**settings).fit(X))
