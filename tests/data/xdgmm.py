"""Makes ``xdgmm.json``: what astroML's XDGMM finds in 20 steps from a given start, on rows that a seed tells.

python -m tests.data.xdgmm, with astroML 1.0.2 installed, from the root of the repository.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

PLACE, STEPS = Path(__file__).with_name("xdgmm.json"), 20
SIZES = [(2, 2), (2, 10), (6, 2), (6, 10)]  # features, components


def problem(d: int, k: int) -> tuple[Any, Any, dict[str, Any]]:
    """Rows (n, d), covariances of their errors (n, d, d), and a start."""
    random = np.random.RandomState(100 * d + k)
    n, centres = 60 * k, 3 * random.normal(size=(k, d))
    root = 0.7 * random.normal(size=(n, d, d)) / np.sqrt(d)
    x = centres[random.randint(k, size=n)] + random.normal(size=(n, d))
    x += (root @ random.normal(size=(n, d, 1)))[:, :, 0]
    means = centres + 0.3 * random.normal(size=(k, d))
    start = {"weights": np.full(k, 1 / k), "means": means, "covariances": np.tile(2 * np.eye(d), (k, 1, 1))}
    return x, root @ np.swapaxes(root, 1, 2), start


def found(d: int, k: int) -> dict[str, Any]:
    """Parameters after the steps, and the mean log-likelihood of those before each step."""
    from astroML.density_estimation import XDGMM

    x, noise, start = problem(d, k)
    model, trace = XDGMM(k), []
    model.alpha, model.mu, model.V = (start[name] for name in ("weights", "means", "covariances"))
    for _ in range(STEPS):
        trace.append(float(model.logL(x, noise)) / len(x))
        model._EMstep(x, noise)
    parts = {"weights": model.alpha, "means": model.mu, "covariances": model.V}
    return {"trace": trace, **{name: values.tolist() for name, values in parts.items()}}


if __name__ == "__main__":
    PLACE.write_text(json.dumps({f"{d} {k}": found(d, k) for d, k in SIZES}) + "\n")
