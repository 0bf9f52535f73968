"""``daskgmm fit`` on a Dask scheduler."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from daskgmm import GaussianMixture

Run = Callable[..., Result]
Certificates = Callable[[str], tuple[str, ...]]
SETTINGS = ("-k", 3, "--seed", 0, "--block-size", 2400)

pytestmark = pytest.mark.timeout(100)


@pytest.fixture(scope="module")
def scheduler_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A scheduler and a worker, each a process of its own, as `dask scheduler` and `dask worker` start them."""
    folder = tmp_path_factory.mktemp("scheduler")
    place = folder / "scheduler.json"
    common = ("--scheduler-file", str(place))
    words = [
        ("scheduler", *common, "--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
        ("worker", *common, "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)),
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for each in words:
            command = [sys.executable, "-m", "dask", *each]
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        yield place
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=20)


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


def test_local_workers(run: Run, data: str, tmp_path: Path, threads: Path) -> None:
    out = tmp_path / "out.npz"
    result = run("fit", data, *SETTINGS, "--out", out, "--local", 2)
    assert (result.exit_code, result.stderr) == (0, "Workers: 2, threads: 2.\n")
    assert same(out, threads)


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
    command = [sys.executable, "-m", "dask", "scheduler", "--scheduler-file", str(place), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
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
