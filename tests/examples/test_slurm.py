"""The examples for Slurm, on a Slurm of this one machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import daskgmm
from daskgmm import GaussianMixture

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples" / "slurm"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scancel", "squeue")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
RANDOM = np.random.default_rng(0)
X = np.concatenate([RANDOM.normal(size=(2000, 4)), RANDOM.normal(3.0, size=(2000, 4))])
FIT = ("-k", "3", "--seed", "0", "--tol", "0", "--max-iter", "60", "--block-size", "8000", "--verbose")
STARTS = 60  # seconds, or there is no Slurm
NOT_CONVERGED, INTERRUPTED = 3, 5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed: no {', '.join(MISSING)}"),
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="a Slurm of one's own needs root"),
    pytest.mark.filterwarnings("ignore:Best performing initialization"),
]


def free_ports() -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return [str(each.getsockname()[1]) for each in (one, other)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of commands that find the Slurm."""
    folder = tmp_path_factory.mktemp("slurm")
    command = [str(HERE / "slurm.sh"), str(folder), *free_ports()]
    path = os.pathsep.join(filter(None, (str(Path(daskgmm.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    with (
        (folder / "out").open("w") as out,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out) as process,
    ):
        try:
            ends = time.monotonic() + STARTS
            while "ready" not in (folder / "out").read_text():
                if time.monotonic() > ends or process.poll() is not None:
                    told = "\n".join(f"{p.name}: {p.read_text()[-300:]}" for p in folder.glob("*.out"))
                    pytest.skip(f"Slurm does not start here: {told}")
                time.sleep(0.2)
            yield {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": path, "PATH": programs}
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("data") / "x.zarr")
    array = zarr.create_array(place, shape=X.shape, chunks=(250, 4), dtype=X.dtype)
    array[...] = X
    return place


@pytest.fixture(scope="module")
def expected(data: str) -> Any:
    """The bits of a fit without a cluster."""
    return bits(GaussianMixture(3, random_state=0, tol=0.0, max_iter=60, block_size=8000).fit(data))


def bits(model: GaussianMixture) -> tuple[Any, ...]:
    return (model.means_.tobytes(), model.covariances_.tobytes(), model.lower_bounds_, model.n_iter_)


class Job:
    """Submits the example batch script, in a folder of its own."""

    SMALL = ("--ntasks=2", "--cpus-per-task=1", "--mem-per-cpu=500M", "--time=5", "--output=log")

    def __init__(self, slurm: dict[str, str], folder: Path, data: str) -> None:
        self.slurm, self.folder, self.log, self.model = slurm, folder, folder / "log", folder / "model.npz"
        self.words = (*self.SMALL, str(EXAMPLES / "fit.sbatch"), data, str(self.model), *FIT)

    def command(self, *words: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, env=self.slurm, cwd=self.folder, timeout=timeout, capture_output=True, text=True, check=False
        )

    def run(self) -> int:
        """Exit code of the job."""
        return self.command("sbatch", "--wait", *self.words, timeout=120).returncode

    def start(self) -> str:
        """Its number, once the fit has made some iterations."""
        submitted = self.command("sbatch", "--parsable", *self.words)
        assert submitted.returncode == 0, submitted.stderr
        self.until(lambda: self.log.exists() and "iteration 5" in self.log.read_text())
        return submitted.stdout.strip()

    def end(self, number: str) -> int:
        """Exit code of a job that is to end."""
        state = ["squeue", "--noheader", "--states=all", f"--jobs={number}"]
        done = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        self.until(lambda: self.command(*state, "--format=%T").stdout.strip() in done)
        return int(self.command(*state, "--Format=exit_code").stdout) >> 8

    def until(self, true: Any) -> None:
        ends = time.monotonic() + 90
        while not true():
            assert time.monotonic() < ends, self.log.read_text() if self.log.exists() else "no log"
            time.sleep(0.1)


@pytest.fixture
def job(slurm: dict[str, str], tmp_path: Path, data: str) -> Job:
    return Job(slurm, tmp_path, data)


def test_the_batch_script_runs_to_completion(job: Job, expected: Any) -> None:
    assert job.run() == NOT_CONVERGED, job.log.read_text()  # as asked: --tol 0
    assert bits(GaussianMixture.load(job.model)) == expected


# The steps get the signal, which are the scheduler and the workers; or the script, which is the fit; or all.
@pytest.mark.parametrize("whom", [(), ("--batch",), ("--full",)])
def test_a_cancelled_job_goes_on_when_submitted_again(job: Job, whom: tuple[str, ...], expected: Any) -> None:
    number = job.start()
    assert job.command("scancel", "--signal=TERM", *whom, number).returncode == 0
    assert job.end(number) == INTERRUPTED, job.log.read_text()
    assert f"The same command goes on from {job.model}.ckpt." in job.log.read_text()
    assert not job.model.exists()
    assert job.run() == NOT_CONVERGED, job.log.read_text()
    assert job.log.read_text().count("\niteration ") < 60  # it did not begin anew
    assert bits(GaussianMixture.load(job.model)) == expected


def test_the_script_for_dask_jobqueue(job: Job, data: str, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    small = ("--jobs", "2", "--cores", "1", "--memory", "500MiB", "--walltime", "00:05:00")
    words = (sys.executable, str(EXAMPLES / "jobqueue.py"), data, str(job.model), "-k", "3", *small)
    done = job.command(*words, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(f"{job.model}.ckpt").exists()
    theirs = GaussianMixture(3, random_state=0).fit(data)
    assert bits(GaussianMixture.load(job.model)) == bits(theirs)
    assert job.command("squeue", "--noheader").stdout == ""  # no worker is left behind
