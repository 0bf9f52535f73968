"""``daskgmm fit`` on a Dask scheduler."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from click.testing import Result
from distributed import Client, LocalCluster

from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from daskgmm._typing import Array
from daskgmm.cli import cluster
from daskgmm.compute.cluster import check_package
from daskgmm.errors import UnfitWorkersError
from tests.doors import hdf5
from tests.forks import Fork

Run = Callable[..., Result]
Certificates = Callable[[str], tuple[str, ...]]
SETTINGS = ("-k", 3, "--seed", 0, "--block-size", 2400)

DASK = "from dask.cli import run_cli; run_cli()"

pytestmark = pytest.mark.timeout(100)


@pytest.fixture(scope="module")
def scheduler_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A scheduler and a worker, each a process of its own, as `dask scheduler` and `dask worker` start them."""
    folder = tmp_path_factory.mktemp("scheduler")
    place = folder / "scheduler.json"
    common = ("--scheduler-file", str(place))
    words = [
        ("scheduler", *common, "--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
        ("worker", *common, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(folder)),
    ]
    with ExitStack() as stack:
        for each in words:
            process = stack.enter_context(Fork(DASK, *each))
            stack.callback(process.send_signal, signal.SIGTERM)
        yield place


def same(one: Path, other: Path) -> bool:
    models = [GaussianMixture.load(place) for place in (one, other)]
    return models[0].means_.tobytes() == models[1].means_.tobytes()


@pytest.fixture
def threads(run: Run, data: str, tmp_path: Path) -> Path:
    out = tmp_path / "threads.npz"
    assert run("fit", data, *SETTINGS, "--out", out).exit_code == 0
    return out


def test_a_scheduler_file_and_an_address(
    run: Run, data: str, tmp_path: Path, threads: Path, scheduler_file: Path
) -> None:
    out = tmp_path / "out.npz"
    result = run("fit", data, *SETTINGS, "--out", out, "--scheduler-file", scheduler_file)
    assert result.exit_code == 0, result.stderr
    assert same(out, threads)
    address = json.loads(scheduler_file.read_text())["address"]
    result = run("fit", data, *SETTINGS, "--out", out, "--overwrite", "--scheduler", address)
    assert result.exit_code == 0, result.stderr
    assert same(out, threads)


def test_queries_and_updates(
    run: Run, values: Array, model: str, fitted: GaussianMixture, tmp_path: Path, scheduler_file: Path
) -> None:
    """On workers, which open an HDF5 file anew, they do what they do here."""
    x, out = hdf5(values, tmp_path), tmp_path / "out"
    where = ("--scheduler-file", scheduler_file, "--block-size", 2400)
    assert run("predict", x, model, "--out", out, *where).exit_code == 0
    np.testing.assert_array_equal(np.asarray(zarr.open_array(str(out))[:]), fitted.predict(values))
    result = run("score", x, model, "--json", "--out", out, "--overwrite", *where)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["log_likelihood"] == pytest.approx(fitted.score(values))
    np.testing.assert_allclose(np.asarray(zarr.open_array(str(out))[:]), fitted.score_samples(values), rtol=1e-12)
    online = tmp_path / "online.npz"
    learn = MiniBatchGaussianMixture(3, random_state=0).partial_fit(values[:300])
    learn.save(online)
    result = run("update", online, x, "--out", online, "--overwrite", *where)
    assert result.exit_code == 0, result.stderr
    assert MiniBatchGaussianMixture.load(online).next_row_ == 650


def test_a_query_on_workers_that_die_is_lost(run: Run, model: str, data: str, tmp_path: Path) -> None:
    with dask.config.set({"daskgmm.timeouts.no-workers": "1 s"}), LocalCluster(n_workers=0) as nobody:
        words = ("predict", data, model, "--out", tmp_path / "out", "--scheduler", nobody.scheduler_address)
        result = run(*words)
    assert result.exit_code == 5, result.stderr
    assert "has had no worker for 1 s" in result.stderr
    assert not (tmp_path / "out").exists()


# As a worker's process ends, after all that was asked for later: how many objects it need not look through.
LAST = """
import atexit, gc
atexit.register(lambda: open({place!r}, "a").write(f"{{gc.get_freeze_count()}} "))
"""


def test_local_workers(run: Run, data: str, tmp_path: Path, threads: Path) -> None:
    """They say how many they are, and end without a search for garbage that outlasts Dask's patience."""
    out, ends = tmp_path / "out.npz", tmp_path / "ends"
    own = {"distributed.worker.multiprocessing-method": "spawn"}  # a fork has no such end
    with dask.config.set(own | {"distributed.worker.preload": [LAST.format(place=str(ends))]}):
        result = run("fit", data, *SETTINGS, "--out", out, "--local", 2)
    assert result.exit_code == 0, result.stderr
    assert re.fullmatch(
        r"Workers: 2, threads: 2\. (Dashboard: http://\S+|No dashboard: .* bokeh .*)\n", result.stderr
    )
    assert same(out, threads)
    counts = [int(count) for count in ends.read_text().split()]
    assert min(counts) > 100_000


@pytest.mark.filterwarnings("ignore:Port 8787")
@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (cluster.DASHBOARDS[0], "Workers: 0, threads: 0. Dashboard: http://127.0.0.1:"),
        (
            cluster.DASHBOARDS[1],
            "Workers: 0, threads: 0. No dashboard: the scheduler needs bokeh",
        ),
        ("", "Workers: 0, threads: 0.\n"),
    ],
)
def test_the_dashboard(
    run: Run, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, told: str
) -> None:
    """Its address is told once, or why there is none."""
    for name in cluster.DASHBOARDS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    bare: dict[str, Any] = {"distributed.scheduler.http.routes": []}
    with dask.config.set(bare), LocalCluster(n_workers=0, dashboard_address=None) as workers:
        if shown:
            monkeypatch.setitem(sys.modules, shown, sys)
        words = ("--scheduler", workers.scheduler_address, "--no-workers-timeout", "100 ms")
        result = run("fit", data, *SETTINGS, "--out", tmp_path / "out.npz", *words)
    assert result.exit_code == 5
    assert result.stderr.startswith(told)
    assert result.stderr.count("ashboard") == bool(shown)


def pretending(daskgmm: str) -> LocalCluster:
    """A worker in a process of its own, where this is imported as the package."""
    script = f"import sys, types; sys.modules['daskgmm'] = {daskgmm}"
    return LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", preload=script)


def test_a_worker_without_the_package(run: Run, data: str, tmp_path: Path) -> None:
    """It is named at once: it would end at its first task, and the fit wait for others."""
    with pretending("None") as workers, Client(workers, set_as_default=False) as client:
        words = ("--out", tmp_path / "out.npz", "--scheduler", workers.scheduler_address)
        result = run("fit", data, *SETTINGS, *words)
        (address,) = client.scheduler_info()["workers"]
        with client.as_current(), pytest.raises(UnfitWorkersError, match=address):
            GaussianMixture(2).fit(data)
    assert result.exit_code == 5
    first, second = result.stderr.splitlines()
    assert first.startswith(
        f"Error: daskgmm cannot be imported on {address}. {address} says: ModuleNotFoundError: "
    )
    assert "Install daskgmm" in second


def test_a_worker_with_another_version() -> None:
    with (
        pretending("types.SimpleNamespace(__version__='0.0.7')") as workers,
        Client(workers, set_as_default=False) as client,
        pytest.warns(UserWarning, match=r"daskgmm is \S+ here, and 0\.0\.7 on tcp://"),
    ):
        check_package(client)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--scheduler", "tcp://127.0.0.1:9", "--local", 1), 2, "Give one of"),
        (("--scheduler", "tcp://127.0.0.1:9", "--scheduler-timeout", "1s"), 5, "No Dask scheduler answers at tcp"),
        (("--scheduler", "nonsense"), 2, "missing port number in address 'nonsense'"),
        (("--scheduler-file", "none.json", "--scheduler-timeout", "1s"), 5, "has written the file none.json"),
        (("--tls-ca-file", __file__), 2, "need --scheduler"),
        (("--local", 1, "--tls-ca-file", __file__), 2, "need --scheduler"),
        (("--scheduler-timeout", "1s"), 2, "need a cluster"),
        (("--no-workers-timeout", "soon"), 2, "no duration"),
    ],
)
def test_what_cannot_be_run(
    run: Run, data: str, tmp_path: Path, words: tuple[Any, ...], code: int, told: str
) -> None:
    result = run("fit", data, *SETTINGS, "--out", tmp_path / "out.npz", *words)
    assert (result.exit_code, told in result.stderr) == (code, True), result.stderr


@pytest.fixture(scope="module")
def tls_address(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[str]:
    """Address of a scheduler with TLS, without the scheme; it has no workers."""
    place = tmp_path_factory.mktemp("tls") / "scheduler.json"
    words = ("--protocol", "tls", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *certificates("ca"))
    with Fork(DASK, "scheduler", "--scheduler-file", place, *words) as process:
        try:
            ends = time.monotonic() + 60
            while not place.exists() or not place.read_text().endswith("}"):
                assert time.monotonic() < ends
                time.sleep(0.1)
            yield json.loads(place.read_text())["address"].removeprefix("tls://")
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("scheme", "authority", "code", "told"),
    [
        ("tcp", "", 5, "If it uses TLS, its address begins with tls://, and it needs --tls-ca-file"),
        ("tls", "", 2, "uses TLS: give --tls-ca-file, --tls-cert and --tls-key."),
        ("tcp", "ca", 2, "would not be encrypted"),
        ("tls", "rogue", 5, "TLS certificate does not match"),
        ("tls", "ca", 5, "has had no worker for 1 s"),  # so it is connected
    ],
)
def test_a_scheduler_with_tls(
    run: Run,
    data: str,
    tmp_path: Path,
    tls_address: str,
    certificates: Certificates,
    scheme: str,
    authority: str,
    code: int,
    told: str,
) -> None:
    words = ("--scheduler", f"{scheme}://{tls_address}", "--scheduler-timeout", "5s", "--no-workers-timeout", "1s")
    options = certificates(authority) if authority else ()
    result = run("fit", data, *SETTINGS, "--out", tmp_path / "out.npz", *words, *options)
    assert (result.exit_code, told in result.stderr) == (code, True), result.stderr
    assert not (tmp_path / "out.npz").exists()


def test_files_that_are_no_certificates(run: Run, data: str, tmp_path: Path) -> None:
    words = [word for what in ("ca-file", "cert", "key") for word in (f"--tls-{what}", __file__)]
    out = tmp_path / "out.npz"
    result = run("fit", data, *SETTINGS, "--out", out, "--scheduler", "tls://127.0.0.1:9", *words)
    assert (result.exit_code, f"They are {__file__}" in result.stderr) == (2, True), result.stderr
