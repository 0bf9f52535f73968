"""Adversarial problems, and EM in extended precision to judge their results by.

Nothing is shared with the package. Rows are measured from the first of them, and no covariance is ever formed on
the way: a factor comes from the centred rows themselves, by orthogonal transformations. So a result is off by about
``eps * sqrt(condition)``, 1e-13 in an 80-bit long double at a condition of 1e12, where a covariance matrix would
lose 1e-7 (Golub & Van Loan 2013, section 5.3).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

L = np.longdouble
KINDS = ("full", "tied", "diag", "spherical")
STEPS = 20


class Found(NamedTuple):
    """Where EM stands after so many iterations; points are measured from ``origin``."""

    weights: Any  # (k,)
    means: Any  # (k, d)
    covariances: Any  # (k, d, d)
    log_likelihood: float  # mean over the rows, before the last update
    origin: Any  # (d,)


@dataclass(frozen=True)
class Problem:
    """Rows with their weights, and a start with diagonal covariances."""

    name: str
    kind: str
    x: Any  # (n, d) of any dtype
    weight: Any  # (n,) or None
    weights: Any  # (k,)
    means: Any  # (k, d)
    variances: Any  # (k, d)
    reg_covar: float

    @property
    def start(self) -> dict[str, Any]:
        """As the estimators take it."""
        v, d = self.variances, self.x.shape[1]
        precisions = {
            "full": lambda: np.stack([np.diag(1 / row) for row in v]),
            "tied": lambda: np.diag(1 / v[0]),
            "diag": lambda: 1 / v,
            "spherical": lambda: 1 / v[:, 0],
        }[self.kind]()
        assert d
        return {"weights_init": self.weights, "means_init": self.means, "precisions_init": precisions}


def em(problem: Problem, steps: int = STEPS, held: bool = False, x: Any = None) -> Found:
    """EM on the rows of a problem, or on others; ``held`` rounds the parameters to float64 after each M-step.

    Raises `ZeroDivisionError` where such covariances have no Cholesky factor.
    """
    x = problem.x if x is None else x
    w = np.ones(len(x), L) if problem.weight is None else problem.weight.astype(L)
    x, w = x[w > 0].astype(L), w[w > 0]
    origin = x[0].copy()
    y, means = x - origin, problem.means.astype(L) - origin
    weights = problem.weights.astype(L)
    factors = np.stack([np.diag(1 / np.sqrt(1 / v)) for v in problem.variances.astype(L)])
    trace = L(0)
    for _ in range(steps):
        logits = np.stack([_log_density(y - m, r) for m, r in zip(means, factors, strict=True)], axis=1)
        with np.errstate(divide="ignore"):
            logits += np.log(weights)
        peak = logits.max(axis=1, keepdims=True)
        resp = np.exp(logits - peak)
        total = resp.sum(axis=1, keepdims=True)
        trace = w @ (peak + np.log(total))[:, 0] / w.sum()
        share = w[:, None] * resp / total
        mass = share.sum(axis=0)
        weights = mass / mass.sum()
        for _ in range(2):  # the second time takes the rounding of the first away
            means = means + np.stack([s @ (y - m) for s, m in zip(share.T, means, strict=True)]) / mass[:, None]
        factors = _factors(problem, y, share, mass, means)
        if held:
            weights, means = (a.astype(float).astype(L) for a in (weights, means + origin))
            means = means - origin
            factors = np.stack([_cholesky((r.T @ r).astype(float).astype(L)) for r in factors])
    return Found(weights, means, np.swapaxes(factors, 1, 2) @ factors, trace, origin)


def _log_density(c: Any, r: Any) -> Any:
    """Of centred rows, with upper ``r.T @ r`` the covariance."""
    z = np.zeros_like(c)
    for i in range(c.shape[1]):
        z[:, i] = (c[:, i] - z[:, :i] @ r[:i, i]) / r[i, i]
    log_two_pi = np.log(8 * np.arctan(L(1)))
    return -(z * z).sum(axis=1) / 2 - np.log(np.abs(np.diag(r))).sum() - c.shape[1] * log_two_pi / 2


def _factors(problem: Problem, y: Any, share: Any, mass: Any, means: Any) -> Any:
    """Upper ``r`` of each component, with ``r.T @ r`` its covariance."""
    k, d = means.shape
    ridge = np.sqrt(L(problem.reg_covar)) * np.eye(d, dtype=L)
    over = mass.sum() if problem.kind == "tied" else mass
    rows = [a * (y - m) for a, m in zip(np.sqrt(share / over).T[:, :, None], means, strict=True)]
    if problem.kind == "tied":
        return np.broadcast_to(_triangle(np.concatenate([*rows, ridge])), (k, d, d))
    if problem.kind == "full":
        return np.stack([_triangle(np.concatenate([part, ridge])) for part in rows])
    variances = np.stack([(part * part).sum(axis=0) for part in rows])
    if problem.kind == "spherical":
        variances = np.broadcast_to(variances.mean(axis=1, keepdims=True), (k, d))
    return np.sqrt(variances + L(problem.reg_covar))[:, :, None] * np.eye(d, dtype=L)


def _triangle(a: Any) -> Any:
    """The upper factor of the QR decomposition, by Householder's reflections."""
    a = a.copy()
    for j in range(a.shape[1]):
        v = a[j:, j].copy()
        norm = np.sqrt(v @ v)
        if norm > 0:
            v[0] += np.copysign(norm, v[0])
            a[j:, j:] -= np.outer(v * (2 / (v @ v)), v @ a[j:, j:])
    return np.triu(a[: a.shape[1]])


def _cholesky(a: Any) -> Any:
    upper = np.zeros_like(a)
    for j in range(len(a)):
        rest = a[j, j] - upper[:j, j] @ upper[:j, j]
        if not rest > 0:
            raise ZeroDivisionError("The covariance is singular.")
        upper[j, j] = np.sqrt(rest)
        upper[j, j + 1 :] = (a[j, j + 1 :] - upper[:j, j] @ upper[:j, j + 1 :]) / upper[j, j]
    return upper


def apart(found: Found, other: Found) -> tuple[float, float, float]:
    """Means in standard deviations of the first, covariances alike, relative log-likelihoods: the largest."""
    sigma = np.sqrt(np.einsum("kii->ki", found.covariances))
    means = (found.means - (other.means + (other.origin - found.origin))) / sigma
    covariances = (found.covariances - other.covariances) / (sigma[:, :, None] * sigma[:, None, :])
    bound = (found.log_likelihood - other.log_likelihood) / max(1, abs(found.log_likelihood))
    return tuple(float(np.abs(off).max()) for off in (means, covariances, bound))  # type: ignore[return-value]


def problems(count: int, seed: int = 0) -> list[Problem]:
    """So many, all kinds of trouble mixed."""
    return [draw(np.random.default_rng([seed, i]), KINDS[i % 4], i) for i in range(count)]


def draw(random: np.random.Generator, kind: str, number: int) -> Problem:
    """One problem: its name tells the troubles."""
    k, d = int(random.integers(1, 6)), int(random.integers(1, 9))
    n, told = 80 * k, []
    labels = np.arange(n) % k
    sigma = np.ones(d)
    turn = np.linalg.qr(random.normal(size=(d, d)))[0]
    if random.random() < 0.4 and d > 1:
        exponent = random.uniform(2, 12)
        told.append(f"condition 1e{exponent:.0f}")
        turn = 10 ** (-exponent / 2 * np.linspace(0, 1, d))[:, None] * turn
    apart = 10 ** random.uniform(2, 8) if random.random() < 0.3 else random.uniform(1, 4)
    if apart > 10:
        told.append(f"separation {apart:.0e}")
    centres = apart * random.normal(size=(k, d))
    if random.random() < 0.5:
        told.append("scales")
        sigma = 10 ** random.uniform(-12, 12, size=d)
    offset = np.zeros(d)
    if random.random() < 0.5:
        told.append("offset")
        offset = random.choice([-1, 1], size=d) * 10 ** random.uniform(0, 12, size=d)
        if random.random() < 0.5:  # in standard deviations, else in numbers
            offset *= sigma
    x = offset + sigma * ((centres @ turn if apart < 10 else centres)[labels] + random.normal(size=(n, d)) @ turn)
    reg_covar = float(random.choice([0.0, 1e-6]))
    if random.random() < 0.2:
        told.append("constant")
        x[:, random.integers(d)] = offset[0] + 0.1
        reg_covar = 1e-6
    if random.random() < 0.2 and d > 1:
        told.append("duplicate")
        x[:, 0] = x[:, -1]
        reg_covar = 1e-6 * float(random.choice([1.0, max(1.0, x.var(axis=0).max())]))
    dtype = str(random.choice(["f8", "f8", "f8", "f4", "i8"]))
    x = np.rint(x).astype("i8") if dtype == "i8" else x.astype(dtype)
    weight = {
        0: None,
        1: random.integers(0, 4, size=n).astype(float),
        2: 10 ** random.uniform(-3, 3, size=n),
    }[int(random.choice([0, 0, 1, 2]))]
    name = f"{number}: {kind}, {dtype}, k={k}, d={d}, reg={reg_covar:.0e} " + ", ".join(told)
    return begun(name, kind, x, weight, labels, reg_covar)


def begun(name: str, kind: str, x: Any, weight: Any, labels: Any, reg_covar: float) -> Problem:
    """A start near the groups that rows were drawn in: means off by .3 of a standard deviation."""
    groups = [x[labels == j].astype(L) for j in np.unique(labels)]
    means = np.stack([group.mean(axis=0) for group in groups])
    variances = np.stack([group.var(axis=0) for group in groups]) + L(reg_covar)
    variances[variances == 0] = 1
    if kind == "tied":
        variances[:] = variances.mean(axis=0)
    if kind == "spherical":
        variances[:] = variances.mean(axis=1, keepdims=True)
    sign = np.where(np.arange(means.size).reshape(means.shape) % 2, 1, -1)
    means = (means + L(0.3) * sign * np.sqrt(variances)).astype(float)
    return Problem(
        name, kind, x, weight, np.full(len(groups), 1 / len(groups)), means, 1 / (1 / variances.astype(float)), reg_covar
    )
