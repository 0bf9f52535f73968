"""A cluster with TLS over two network namespaces: two machines, as far as the network goes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import daskgmm
from daskgmm import GaussianMixture
from daskgmm._typing import Array

MISSING = [name for name in ("ip", "openssl") if shutil.which(name) is None]
HOSTS = ("192.0.2.1", "192.0.2.2")  # TEST-NET-1 of RFC 5737; seen by the two namespaces alone
SETTINGS = ("-k", "3", "--seed", "0", "--block-size", "2400", "--tol", "0", "--max-iter", "20")
NOT_CONVERGED, LOST = 3, 5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(("ip", *words), capture_output=True, text=True, timeout=20, check=False)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two namespaces with a cable between them; each has the address of its place in `HOSTS`."""
    tag = uuid.uuid4().hex[:6]
    names = (f"daskgmm-{tag}-0", f"daskgmm-{tag}-1")
    first, second = names
    commands: list[tuple[str, ...]] = [("netns", "add", name) for name in names]
    commands.append(
        ("link", "add", f"v{tag}0", "netns", first, "type", "veth", "peer", f"v{tag}1", "netns", second)
    )
    for number, (name, host) in enumerate(zip(names, HOSTS, strict=True)):
        commands.append(("-n", name, "address", "add", f"{host}/24", "dev", f"v{tag}{number}"))
        commands += [("-n", name, "link", "set", link, "up") for link in ("lo", f"v{tag}{number}")]
    try:
        for command in commands:
            done = ip(*command)
            if done.returncode:
                pytest.skip(f"network namespaces are not permitted: ip {' '.join(command)}: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)  # and its end of the cable


class Machine:
    """Starts commands in a namespace, and ends them all."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self.name, self.stack = name, stack
        path = os.pathsep.join(
            filter(None, (str(Path(daskgmm.__file__).parents[1]), os.environ.get("PYTHONPATH")))
        )
        self.environment = {**os.environ, "PYTHONPATH": path}

    def words(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, sys.executable, *words]

    def start(self, log: Path, *words: str) -> None:
        with log.open("w") as file:
            process = subprocess.Popen(self.words(*words), env=self.environment, stdout=file, stderr=file)
        self.stack.callback(process.wait, timeout=20)
        self.stack.callback(process.kill)  # first: `ip` has made itself the command

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = self.words(*words)
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=90, check=False
        )


@pytest.fixture
def machines(namespaces: tuple[str, str]) -> Iterator[list[Machine]]:
    with ExitStack() as stack:
        yield [Machine(name, stack) for name in namespaces]


def written(place: Path, logs: Path) -> str:
    """The address in a scheduler file."""
    ends = time.monotonic() + 60
    while not place.exists() or not place.read_text().endswith("}"):
        assert time.monotonic() < ends, [log.read_text() for log in logs.glob("*.log")]
        time.sleep(0.1)
    return str(json.loads(place.read_text())["address"])


# Blocks on both machines, whichever is free first; results go over the cable.
COUNT = """
import sys
from distributed import Client
from distributed.security import Security
address, ca, cert, key = sys.argv[1:]
security = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)
with Client(address, security=security, timeout=30) as client:
    client.wait_for_workers(2, timeout=60)
    print(*sorted(client.scheduler_info(n_workers=-1)["workers"]))
"""


def test_two_machines_with_tls_fit_to_the_bits_of_one(
    machines: list[Machine],
    data: str,
    values: Array,
    certificates: Callable[[str], tuple[str, ...]],
    tmp_path: Path,
) -> None:
    file, out, tls = tmp_path / "scheduler.json", tmp_path / "out.npz", certificates("ca")
    dask: Any = ("-m", "dask")
    words = (
        "--host",
        HOSTS[0],
        "--port",
        "0",
        "--protocol",
        "tls",
        "--no-dashboard",
        "--scheduler-file",
        str(file),
    )
    machines[0].start(tmp_path / "scheduler.log", *dask, "scheduler", *words, *tls)
    address = written(file, tmp_path)
    assert address.startswith(f"tls://{HOSTS[0]}:")
    for machine, host in zip(machines, HOSTS, strict=True):
        # Without a nanny, which a SIGKILL would leave no time to end its worker.
        own = ("--host", host, "--protocol", "tls", "--nthreads", "1", "--no-dashboard", "--no-nanny")
        folder = ("--local-directory", str(tmp_path / host), "--death-timeout", "60")
        machine.start(tmp_path / f"{host}.log", *dask, "worker", address, *own, *folder, *tls)
    counted = machines[1].run("-c", COUNT, address, *tls[1::2])
    logs = [log.read_text() for log in tmp_path.glob("*.log")]
    assert [w.rpartition(":")[0] for w in counted.stdout.split()] == [f"tls://{h}" for h in HOSTS], (counted, logs)

    cli = ("-c", "from daskgmm.cli import main; main(prog_name='daskgmm')", "fit", data, *SETTINGS)
    fitted = machines[1].run(*cli, "--out", str(out), "--scheduler", address, *tls)
    assert fitted.returncode == NOT_CONVERGED, fitted.stderr
    theirs = tmp_path / "alone.npz"
    alone = machines[1].run(*cli, "--out", str(theirs))
    assert alone.returncode == NOT_CONVERGED, alone.stderr
    models = [GaussianMixture.load(place) for place in (out, theirs)]
    found = [(m.means_.tobytes(), m.covariances_.tobytes(), m.lower_bounds_, m.n_passes_) for m in models]
    assert found[0] == found[1]

    plain = address.replace("tls://", "tcp://")
    none = tmp_path / "none.npz"
    refused = machines[1].run(*cli, "--out", str(none), "--scheduler", plain, "--scheduler-timeout", "5s")
    assert refused.returncode == LOST, refused.stderr
    assert f"No Dask scheduler answers at {plain}" in refused.stderr
    assert "If it uses TLS, its address begins with tls://" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not none.exists()
