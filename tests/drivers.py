"""What a fit leaves behind, bit for bit, and fits in processes of their own, which are killed."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from daskgmm import BayesianGaussianMixture, GaussianMixture
from tests.forks import Fork


def bits(model: GaussianMixture | BayesianGaussianMixture) -> tuple[Any, ...]:
    """All that a batch fit finds."""
    arrays = (model.weights_, model.means_, model.covariances_, model.precisions_cholesky_)
    return (*(a.tobytes() for a in arrays), model.lower_bounds_, model.n_iter_, model.converged_, model.n_passes_)


def kill(driver: Fork, seconds: float) -> bool:
    """Kill a program so long after it prints "ready", just before it fits; whether it was still at work."""
    with driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        time.sleep(seconds)
        running = driver.returncode is None
        driver.send_signal(signal.SIGKILL)
    return running


def lives(begin: Callable[[], Fork], kills: int, longest: float, place: Path, out: Path) -> Iterator[None]:
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
