"""New processes that need not import everything again: forks of one that has."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self
from unittest import mock

import dask
from distributed.utils import get_mp_context

ROOT = str(Path(__file__).parents[1])
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
IMPORTED = ["daskgmm.cli", "distributed.nanny", "distributed.cli.dask_scheduler", "pandas", "pytest", "s3fs"]


def path() -> str:
    """Of modules, for other processes: this repository first."""
    return os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))


@cache
def prepare() -> None:
    """Start the process that is forked, of which Dask's workers are forks from then on, too."""
    method = {"distributed.worker.multiprocessing-method": METHOD, "multiprocessing.context": METHOD}
    dask.config.set(method)
    if METHOD == "forkserver":
        get_mp_context()  # which would choose other modules later
        multiprocessing.set_forkserver_preload(IMPORTED)
        with mock.patch.dict(os.environ, PYTHONPATH=path()):
            forkserver.ensure_running()


class Fork:
    """A program in a process of its own, with the methods of `subprocess.Popen`; a pipe holds its output."""

    def __init__(
        self, program: str, *words: Any, stdout: int | None = None, stderr: int | None = None, **environment: str
    ) -> None:
        context: Any = multiprocessing.get_context(METHOD)
        ends: list[tuple[Any, Any]] = []
        for given in (stdout, stderr):
            ends.append(context.Pipe(duplex=False) if given is None else (None, Connection(os.dup(given), False)))
        writers = [writer for _, writer in ends]
        self.process = context.Process(target=_run, args=(program, [*map(str, words)], environment, *writers))
        self.process.start()
        for writer in writers:
            writer.close()
        self.stdout, self.stderr = (reader and os.fdopen(os.dup(reader.fileno())) for reader, _ in ends)

    @property
    def returncode(self) -> int | None:
        """None while it runs, and -n after signal n."""
        code: int | None = self.process.exitcode
        return code

    def wait(self, timeout: float) -> int | None:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.process), timeout)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What is left to read, once it has ended."""
        self.wait(timeout)
        out, err = (file.read() if file else "" for file in (self.stdout, self.stderr))
        return out, err

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.join()
        for file in (self.stdout, self.stderr):
            if file:
                file.close()


def _run(program: str, words: list[str], environment: Mapping[str, str], *ends: Connection) -> None:
    os.environ.update(environment)
    dask.config.refresh()
    # A process started in the background may have been told to ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, end in enumerate(ends, 1):
        os.dup2(end.fileno(), number)
        end.close()
    sys.argv = ["-c", *words]
    exec(program, {"__name__": "__main__"})
