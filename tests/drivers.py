"""What a fit leaves behind, bit for bit, and fits in processes of their own, which are killed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import daskgmm
from daskgmm import GaussianMixture

Driver: TypeAlias = subprocess.Popen[str]
ROOT = str(Path(daskgmm.__file__).parents[1])


def bits(model: GaussianMixture) -> tuple[Any, ...]:
    """All that a batch fit finds."""
    arrays = (model.weights_, model.means_, model.covariances_, model.precisions_cholesky_)
    return (*(a.tobytes() for a in arrays), model.lower_bounds_, model.n_iter_, model.converged_, model.n_passes_)


def start(program: str, *words: Any, **environment: str) -> Driver:
    """A Python program that prints "ready" just before it fits; what is imported here can be imported there."""
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", program, *map(str, words)]
    settings = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env=settings)


def kill(driver: Driver, seconds: float) -> bool:
    """Kill it so long after it is ready; whether it was still at work."""
    with driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        time.sleep(seconds)
        running = driver.poll() is None
        driver.send_signal(signal.SIGKILL)
    return running


def lives(begin: Callable[[], Driver], kills: int, longest: float, place: Path, out: Path) -> Iterator[None]:
    """Kill drivers at random moments within ``longest`` seconds; after five lives, and the last, yield for a look.

    A fit that has ended, in ``out``, counts for nothing, and begins anew; so does the next after each look.
    """
    moments, killed = random.Random(0), 0
    while killed < kills:
        if not kill(begin(), moments.uniform(0.0, longest)) or out.exists():
            place.unlink(missing_ok=True)
            out.unlink(missing_ok=True)
            continue
        killed += 1
        if killed % 5 == 0 or killed == kills:
            yield
            place.unlink()
