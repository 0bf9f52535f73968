"""Benchmark problems for fits of Gaussian mixtures, drawn with NumPy or made of scikit-learn's bundled data.

    problem = load("g16-d8-M")      # .train (n, d), .test, .k, .truth: weights, means, covariances; or None

Seeds are fixed. Gaussian problems are named g<K>-d<d>-<overlap>[-a1]. The overlap S, L, M or H means a Bayes
(MAP) error of 0.1, 1, 10 or 30 % under the truth. Weights are drawn from Dirichlet(5), with a1 from Dirichlet(1).
The scale of the means that gives the error was found once, by `calibrate`, and is written down, so that the rows
do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer, load_digits, load_sample_images, load_wine

Array = npt.NDArray[np.float64]
Truth = tuple[Array, Array, Array]  # weights (k,), means (k, d), covariances (k, d, d)

ERROR = {"S": 0.001, "L": 0.01, "M": 0.10, "H": 0.30}
N_TRAIN, N_TEST = 200_000, 50_000


class Gaussian(NamedTuple):
    """How a Gaussian problem is drawn."""

    k: int
    d: int
    overlap: str
    alpha: int  # of the Dirichlet distribution of the weights
    seed: int
    scale: float  # of the means


GAUSSIAN = {
    "g8-d2-L": Gaussian(8, 2, "L", 5, 101, 6.262),
    "g8-d2-H-a1": Gaussian(8, 2, "H", 1, 102, 1.503),
    "g8-d8-M": Gaussian(8, 8, "M", 5, 103, 1.356),
    "g8-d32-M-a1": Gaussian(8, 32, "M", 1, 104, 0.4379),
    "g16-d2-M": Gaussian(16, 2, "M", 5, 105, 10.16),
    "g16-d4-H": Gaussian(16, 4, "H", 5, 106, 1.542),
    "g16-d8-L-a1": Gaussian(16, 8, "L", 1, 107, 2.028),
    "g16-d16-M": Gaussian(16, 16, "M", 5, 108, 0.8168),
    "g16-d32-H-a1": Gaussian(16, 32, "H", 1, 109, 0.3446),
    "g32-d2-M-a1": Gaussian(32, 2, "M", 1, 110, 8.752),
    "g32-d4-L": Gaussian(32, 4, "L", 5, 111, 5.997),
    "g32-d8-M": Gaussian(32, 8, "M", 5, 112, 1.788),
    "g32-d16-H": Gaussian(32, 16, "H", 5, 113, 0.664),
    "g32-d32-L-a1": Gaussian(32, 32, "L", 1, 114, 0.7097),
    "g64-d2-L": Gaussian(64, 2, "L", 5, 115, 56.41),
    "g64-d4-M": Gaussian(64, 4, "M", 5, 116, 4.11),
    "g64-d8-H": Gaussian(64, 8, "H", 5, 117, 1.193),
    "g64-d16-M-a1": Gaussian(64, 16, "M", 1, 118, 1.023),
    # More for counts of passes.
    "g8-d4-H": Gaussian(8, 4, "H", 5, 121, 1.287),
    "g8-d16-H": Gaussian(8, 16, "H", 5, 122, 0.4812),
    "g16-d2-H": Gaussian(16, 2, "H", 5, 123, 4.183),
    "g16-d8-H": Gaussian(16, 8, "H", 5, 124, 0.9757),
    "g16-d16-H-a1": Gaussian(16, 16, "H", 1, 125, 0.5),
    "g32-d4-H-a1": Gaussian(32, 4, "H", 1, 126, 1.627),
    "g8-d16-L": Gaussian(8, 16, "L", 5, 127, 1.05),
    "g16-d4-L": Gaussian(16, 4, "L", 5, 128, 5.387),
    # Overlapping, for counts of passes.
    "g4-d2-H": Gaussian(4, 2, "H", 5, 301, 3.539),
    "g4-d8-M": Gaussian(4, 8, "M", 5, 302, 0.8092),
    "g4-d16-H-a1": Gaussian(4, 16, "H", 1, 303, 0.1974),
    "g8-d2-M": Gaussian(8, 2, "M", 5, 304, 2.917),
    "g8-d2-H": Gaussian(8, 2, "H", 5, 305, 2.696),
    "g8-d4-M-a1": Gaussian(8, 4, "M", 1, 306, 1.385),
    "g8-d8-H": Gaussian(8, 8, "H", 5, 307, 0.61),
    "g8-d16-M": Gaussian(8, 16, "M", 5, 308, 0.8033),
    "g8-d32-H": Gaussian(8, 32, "H", 5, 309, 0.2797),
    "g16-d2-M-a1": Gaussian(16, 2, "M", 1, 310, 6.514),
    "g16-d4-M": Gaussian(16, 4, "M", 5, 311, 3.316),
    "g16-d4-H-a1": Gaussian(16, 4, "H", 1, 312, 0.9886),
    "g16-d8-M": Gaussian(16, 8, "M", 5, 313, 1.431),
    "g16-d8-H-a1": Gaussian(16, 8, "H", 1, 314, 1.027),
    "g16-d16-M-a1": Gaussian(16, 16, "M", 1, 315, 0.817),
    "g16-d16-H": Gaussian(16, 16, "H", 5, 316, 0.5332),
    "g16-d32-M": Gaussian(16, 32, "M", 5, 317, 0.5637),
    "g32-d2-H": Gaussian(32, 2, "H", 5, 318, 6.039),
    "g32-d4-M": Gaussian(32, 4, "M", 5, 319, 2.981),
    "g32-d4-H": Gaussian(32, 4, "H", 5, 320, 1.854),
    "g32-d8-H": Gaussian(32, 8, "H", 5, 321, 1.167),
    "g32-d16-M-a1": Gaussian(32, 16, "M", 1, 322, 0.9172),
    "g64-d4-H": Gaussian(64, 4, "H", 5, 323, 2.664),
    "g64-d8-M": Gaussian(64, 8, "M", 5, 324, 2.017),
    # Separated.
    "g4-d2-S": Gaussian(4, 2, "S", 5, 331, 5.272),
    "g4-d16-S-a1": Gaussian(4, 16, "S", 1, 332, 1.067),
    "g8-d4-S": Gaussian(8, 4, "S", 5, 333, 3.708),
    "g8-d8-S-a1": Gaussian(8, 8, "S", 1, 334, 2.662),
    "g8-d32-S": Gaussian(8, 32, "S", 5, 335, 1.045),
    "g16-d4-S-a1": Gaussian(16, 4, "S", 1, 336, 10.48),
    "g16-d16-S": Gaussian(16, 16, "S", 5, 337, 1.873),
    "g32-d8-S": Gaussian(32, 8, "S", 5, 338, 3.611),
}


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows to fit k components to, and others of the same kind."""

    name: str
    k: int
    train: Array  # (n, d)
    test: Array  # (m, d)
    truth: (
        Truth | None
    )  # weights (k,), means (k, d) and covariances (k, d, d), where rows were drawn from a mixture


def shapes(k: int, d: int, overlap: str, alpha: float, seed: int) -> Truth:
    """Weights, means before they are scaled, and covariances."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(k, float(alpha)))
    means = rng.standard_normal((k, d))
    spread = 0.7 if overlap in "SL" else min(0.7, 1.4 / np.sqrt(d))
    covariances = np.empty((k, d, d))
    for j in range(k):
        q, r = np.linalg.qr(rng.standard_normal((d, d)))
        q = q * np.sign(np.diag(r))
        covariances[j] = (q * np.exp(spread * rng.standard_normal(d))) @ q.T
    return weights, means, covariances


def draw(
    truth: Truth, n: int, rng: np.random.Generator, df: float | None = None
) -> tuple[Array, npt.NDArray[np.intp]]:
    """Rows in random order, and their components; ``df``: of Student's t-distributions."""
    weights, means, covariances = truth
    k, d = means.shape
    z = rng.choice(k, n, p=weights / weights.sum())
    noise = rng.standard_normal((n, d))
    if df is not None:
        noise *= np.sqrt(df / rng.chisquare(df, n))[:, None]
    x = np.empty((n, d))
    for j in range(k):
        rows = z == j
        x[rows] = means[j] + noise[rows] @ np.linalg.cholesky(covariances[j]).T
    return x, z


def log_joint(x: Array, truth: Truth) -> Array:
    """Log-density of each row and component, (n, k)."""
    out = np.empty((len(x), len(truth[0])))
    for j, (weight, mean, covariance) in enumerate(zip(*truth, strict=True)):
        lower = np.linalg.cholesky(covariance)
        y = np.linalg.solve(lower, (x - mean).T)
        out[:, j] = np.log(weight) - np.log(np.diag(lower)).sum() - 0.5 * (y**2).sum(axis=0)
    return np.asarray(out - 0.5 * x.shape[1] * np.log(2 * np.pi))


def calibrate(k: int, d: int, overlap: str, alpha: float, seed: int) -> float:
    """The scale of the means that gives the Bayes error wanted, by bisection; four digits."""
    weights, means, covariances = shapes(k, d, overlap, alpha, seed)
    low, high = np.log(0.01), np.log(100.0)
    for _ in range(22):
        middle = 0.5 * (low + high)
        truth = weights, np.exp(middle) * means, covariances
        x, z = draw(truth, 8000, np.random.default_rng(seed + 7))
        error = (log_joint(x, truth).argmax(axis=1) != z).mean()
        low, high = (middle, high) if error > ERROR[overlap] else (low, middle)
    return float(f"{np.exp(middle):.4g}")


def load(name: str, n_train: int = N_TRAIN, n_test: int = N_TEST) -> Problem:
    """The problem of this name, with so many rows."""
    if name in GAUSSIAN:
        k, d, overlap, alpha, seed, scale = GAUSSIAN[name]
        weights, means, covariances = shapes(k, d, overlap, alpha, seed)
        truth = weights, scale * means, covariances
        train, test = (draw(truth, n, np.random.default_rng([seed, i]))[0] for i, n in ((1, n_train), (2, n_test)))
        return Problem(name, k, train, test, truth)
    k, make = OTHER[name]
    train, test = make(n_train, n_test)
    return Problem(name, k, np.ascontiguousarray(train), np.ascontiguousarray(test), None)


# Other problems: rows for training and for testing


def student3(n: int, m: int) -> tuple[Array, Array]:
    """Clusters with heavy tails."""
    weights, means, covariances = shapes(16, 8, "M", 5, 201)
    truth = weights, 2.2 * means, covariances
    return _both(lambda size, rng: draw(truth, size, rng, df=3)[0], n, m, 201)


def lognormal(n: int, m: int) -> tuple[Array, Array]:
    """Clusters with one long tail in each direction."""
    weights, means, covariances = shapes(8, 4, "M", 5, 202)
    truth = weights, means, 0.3 * covariances
    return _both(lambda size, rng: np.exp(draw(truth, size, rng)[0]), n, m, 202)


def spiral(n: int, m: int) -> tuple[Array, Array]:
    """Three arms."""

    def rows(size: int, rng: np.random.Generator) -> Array:
        t = np.sqrt(rng.uniform(0.05, 1, size)) * 3 * np.pi
        arm = rng.integers(0, 3, size) * (2 * np.pi / 3)
        x = np.column_stack([t * np.cos(t + arm), t * np.sin(t + arm)])
        return np.asarray(x + 0.25 * rng.standard_normal((size, 2)))

    return _both(rows, n, m, 203)


def rings(n: int, m: int) -> tuple[Array, Array]:
    """Four rings about one centre."""

    def rows(size: int, rng: np.random.Generator) -> Array:
        radius = np.array([1.0, 2.0, 3.0, 4.0])[rng.choice(4, size, p=[0.1, 0.2, 0.3, 0.4])]
        angle = rng.uniform(0, 2 * np.pi, size)
        x = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
        return np.asarray(x + 0.1 * rng.standard_normal((size, 2)))

    return _both(rows, n, m, 204)


def _both(rows: Callable[[int, np.random.Generator], Array], n: int, m: int, seed: int) -> tuple[Array, Array]:
    return rows(n, np.random.default_rng([seed, 1])), rows(m, np.random.default_rng([seed, 2]))


def digits(n: int, m: int) -> tuple[Array, Array]:
    """Handwritten digits, of which 16 principal components are left."""
    x = load_digits().data
    x = x - x.mean(axis=0)
    _, _, v = np.linalg.svd(x, full_matrices=False)
    v = v[:16]
    v = v * np.sign(v[np.arange(16), np.abs(v).argmax(axis=1)])[:, None]
    return _repeated(x @ v.T, n, m, 205, 1.5)


def wine(n: int, m: int) -> tuple[Array, Array]:
    """Chemical analyses, standardised."""
    x = load_wine().data
    return _repeated((x - x.mean(axis=0)) / x.std(axis=0), n, m, 206, 0.3)


def cancer(n: int, m: int) -> tuple[Array, Array]:
    """Shapes of cell nuclei, standardised."""
    x = load_breast_cancer().data
    return _repeated((x - x.mean(axis=0)) / x.std(axis=0), n, m, 207, 0.2)


def _repeated(x: Array, n: int, m: int, seed: int, jitter: float) -> tuple[Array, Array]:
    """Rows drawn with replacement, plus noise; test rows come from the same rows with other noise."""

    def rows(size: int, rng: np.random.Generator) -> Array:
        return np.asarray(x[rng.integers(0, len(x), size)] + jitter * rng.standard_normal((size, x.shape[1])))

    return _both(rows, n, m, seed)


@cache
def _photographs() -> tuple[npt.NDArray[np.uint8], ...]:
    return tuple(load_sample_images().images)


def patch8(n: int, m: int) -> tuple[Array, Array]:
    """Windows of 8x8 pixels."""
    return _patches(8, min(n, 100_000), min(m, 25_000), 208, 0.002)


def patch4(n: int, m: int) -> tuple[Array, Array]:
    """Windows of 4x4 pixels."""
    return _patches(4, n, m, 209, 0.004)


def _patches(side: int, n: int, m: int, seed: int, noise: float) -> tuple[Array, Array]:
    """Grey patches scaled to [0, 1]; bands of lines apart for training and testing, so that no pixel is shared."""
    train, test = [], []
    for photograph in _photographs():
        grey = photograph @ (0.299, 0.587, 0.114) / 255
        windows = np.lib.stride_tricks.sliding_window_view(grey, (side, side))
        line = np.arange(len(windows)) % 140
        train.append(windows[line < 112].reshape(-1, side * side))
        test.append(windows[(line >= 112 + side - 1) & (line < 140 - side + 1)].reshape(-1, side * side))
    rng = np.random.default_rng([seed, 1])
    a, b = np.concatenate(train), np.concatenate(test)
    a = a[rng.permutation(len(a))[:n]]
    b = b[rng.permutation(len(b))[:m]]
    return a + noise * rng.standard_normal(a.shape), b + noise * rng.standard_normal(b.shape)


def rgb(n: int, m: int) -> tuple[Array, Array]:
    """Pixels with their rounding undone: uniform noise of one shade."""
    x = np.concatenate([photograph.reshape(-1, 3) for photograph in _photographs()]).astype(float)
    rng = np.random.default_rng([210, 1])
    order = rng.permutation(len(x))
    a, b = x[order[:n]], x[order[n : n + m]]
    return (a + rng.uniform(0, 1, a.shape)) / 256, (b + rng.uniform(0, 1, b.shape)) / 256


OTHER: dict[str, tuple[int, Callable[[int, int], tuple[Array, Array]]]] = {  # k, and how rows are made
    "student3": (16, student3),
    "lognormal": (16, lognormal),
    "spiral": (32, spiral),
    "rings": (32, rings),
    "digits": (16, digits),
    "wine": (8, wine),
    "cancer": (8, cancer),
    "patch8": (16, patch8),
    "patch4": (32, patch4),
    "rgb": (32, rgb),
}
FITTED = (*list(GAUSSIAN)[:18], *OTHER)  # what default fits are compared on
OVERLAPPING = tuple(name for name, problem in GAUSSIAN.items() if 300 < problem.seed <= 324)  # passes are counted
SEPARATED = tuple(name for name, problem in GAUSSIAN.items() if problem.overlap == "S")
