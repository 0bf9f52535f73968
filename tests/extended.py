"""Adversarial problems, and EM in extended precision to judge results by.

Nothing of the package computes here. Rows are measured from the first of them, and no covariance is formed on the
way to a factor, which comes from the centred rows themselves by reflections. So a density is off by some
``eps * sqrt(condition)`` (Golub & Van Loan 2013, section 5.3), with the 80 bits of x86 1e-13 where the condition
of a covariance is 1e12, and a mean by eps of the spread of the rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tests.structures import KINDS, L, matrices

STEPS = 20
DRAWS = 8  # of rounding
# Means and covariances, in standard deviations; log-likelihood, relative.
AIM = (1e-7, 1e-7, 1e-9)
SLACK = 10  # times the most that rounding does in these draws: a fit rounds more than once


class Found(NamedTuple):
    """Where EM stands; components of any type have a covariance each."""

    weights: Any  # (k,)
    means: Any  # (k, d) from the first row
    covariances: Any  # (k, d, d)
    log_likelihood: Any  # mean over the rows, before the last update


@dataclass(frozen=True)
class Problem:
    """Rows with their weights, and a start with diagonal covariances."""

    name: str
    kind: str
    x: Any  # (n, d) of any dtype
    weight: Any  # (n,) or None
    reg_covar: float
    weights: Any  # (k,)
    means: Any  # (k, d)
    precisions: Any  # (k, d)

    @property
    def settings(self) -> dict[str, Any]:
        """Of an estimator, ours or scikit-learn's."""
        p: Any = self.precisions
        if self.kind in ("full", "tied"):
            p = p[:, :, None] * np.eye(p.shape[1])
        precisions = p[0] if self.kind == "tied" else p[:, 0] if self.kind == "spherical" else p
        start = {"weights_init": self.weights, "means_init": self.means, "precisions_init": precisions}
        return {"covariance_type": self.kind, "tol": 0, "max_iter": STEPS, "reg_covar": self.reg_covar, **start}

    def found(self, model: Any) -> Found:
        """Of a fitted estimator."""
        means = model.means_.astype(L) - self.x[0].astype(L)
        covariances = matrices(model.covariances_, self.kind, *means.shape)
        return Found(model.weights_, means, covariances, model.lower_bounds_[-1])


def em(problem: Problem, x: Any = None, rounded: Callable[[Any], Any] | None = None) -> Found:
    """EM on the rows of a problem, or on others in their place.

    ``rounded`` is what becomes of the parameters after each M-step. Raises `ZeroDivisionError` where a covariance
    is singular.
    """
    origin = problem.x[0].astype(L)
    y = (problem.x if x is None else x).astype(L) - origin
    w = np.ones(len(y), L) if problem.weight is None else problem.weight.astype(L)
    y, w = y[w > 0], w[w > 0]
    weights, means = problem.weights.astype(L), problem.means.astype(L) - origin
    factors = np.sqrt(1 / problem.precisions.astype(L))[:, :, None] * np.eye(y.shape[1])
    bound: Any = L(0)
    for _ in range(STEPS):
        with np.errstate(all="ignore"):  # an empty component; a singular covariance, whose results are NaN
            logs = [np.log(p) + _density(y - m, r) for p, m, r in zip(weights, means, factors, strict=True)]
        logits = np.stack(logs, axis=1)
        peak = logits.max(axis=1, keepdims=True)
        resp = np.exp(logits - peak)
        total = resp.sum(axis=1, keepdims=True)
        bound = w @ (peak + np.log(total))[:, 0] / w.sum()
        share = w[:, None] * resp / total
        mass = share.sum(axis=0)
        weights = mass / mass.sum()
        for _ in range(2):  # the second time takes away what the first has rounded
            off = [s @ (y - m) for s, m in zip(share.T, means, strict=True)]
            means = means + np.stack(off) / mass[:, None]
        factors = _factors(problem, y, share, mass, means)
        if rounded is not None:
            weights, means = rounded(weights), rounded(means + origin) - origin
            own = factors[:1] if problem.kind == "tied" else factors
            own = np.stack([_cholesky(rounded(r.T @ r)) for r in own])
            factors = np.broadcast_to(own, factors.shape)
    return Found(weights, means, np.swapaxes(factors, 1, 2) @ factors, bound)


def _density(c: Any, r: Any) -> Any:
    """Log-density of centred rows whose covariance is ``r.T @ r``, with ``r`` upper triangular."""
    z = np.zeros_like(c)
    for i in range(c.shape[1]):
        z[:, i] = (c[:, i] - z[:, :i] @ r[:i, i]) / r[i, i]
    log_det = 2 * np.log(np.abs(np.diag(r))).sum()
    return -((z * z).sum(axis=1) + log_det + c.shape[1] * np.log(8 * np.arctan(L(1)))) / 2


def _factors(problem: Problem, y: Any, share: Any, mass: Any, means: Any) -> Any:
    """Upper ``r`` of each component, with ``r.T @ r`` its covariance."""
    d, ridge = y.shape[1], L(problem.reg_covar)
    over = mass.sum() if problem.kind == "tied" else mass
    rows = [a[:, None] * (y - m) for a, m in zip(np.sqrt(share / over).T, means, strict=True)]
    beneath = np.sqrt(ridge) * np.eye(d, dtype=L)
    if problem.kind == "tied":
        return np.stack([_triangle(np.concatenate([*rows, beneath]))] * len(means))
    if problem.kind == "full":
        return np.stack([_triangle(np.concatenate([part, beneath])) for part in rows])
    variances = np.stack([(part * part).sum(axis=0) for part in rows])
    if problem.kind == "spherical":
        variances = np.repeat(variances.mean(axis=1, keepdims=True), d, axis=1)
    return np.sqrt(variances + ridge)[:, :, None] * np.eye(d, dtype=L)


def _triangle(a: Any) -> Any:
    """The upper factor of a QR decomposition, by Householder's reflections."""
    for j in range(a.shape[1]):
        v = a[j:, j].copy()
        norm = np.sqrt(v @ v)
        if norm > 0:
            v[0] += np.copysign(norm, v[0])
            a[j:, j:] -= np.outer(v * (2 / (v @ v)), v @ a[j:, j:])
    return np.triu(a[: a.shape[1]])


def _cholesky(a: Any) -> Any:
    """Upper, in the precision of ``a``."""
    upper = np.zeros_like(a)
    for j in range(len(a)):
        rest = a[j, j] - upper[:j, j] @ upper[:j, j]
        if not rest > 0:
            raise ZeroDivisionError("A covariance is singular.")
        upper[j, j] = np.sqrt(rest)
        upper[j, j + 1 :] = (a[j, j + 1 :] - upper[:j, j] @ upper[:j, j + 1 :]) / upper[j, j]
    return upper


def apart(exact: Found, other: Found) -> Any:
    """Largest differences of means, covariances and log-likelihood, in the units of `AIM`."""
    sigma = np.sqrt(np.einsum("kii->ki", exact.covariances))
    means = (exact.means - other.means) / sigma
    covariances = (exact.covariances - other.covariances) / (sigma[:, :, None] * sigma[:, None, :])
    bound = (exact.log_likelihood - other.log_likelihood) / max(1, abs(exact.log_likelihood))
    return np.array([np.abs(off).max() for off in (means, covariances, bound)], dtype=float)


def allowed(problem: Problem, exact: Found) -> Iterator[Any]:
    """What rounding allows of each difference, draw by draw: infinite once one makes a covariance singular.

    Two things do: each value of the rows off by half a unit of its last place, and parameters that float64 holds.
    Rows in float32 are worked on in float32, too, with errors of some units of its last place. One draw may do far
    less than another: of problem 37, 24 roundings of the parameters move the log-likelihood by 1e-10 to 2e-9.
    """
    x, eps = problem.x, float(np.finfo(problem.x.dtype if problem.x.dtype.kind == "f" else float).eps)
    limits = np.maximum(AIM, 0 if eps < 1e-15 else 16 * eps)
    for number in range(DRAWS):
        random = np.random.default_rng(number)
        for settings in ({"x": _rounded(random, x, eps)}, {"rounded": partial(_rounded, random)}):
            with np.errstate(all="ignore"):
                try:
                    moved = apart(exact, em(problem, **settings))
                except ZeroDivisionError:
                    moved = np.full(3, np.inf)
                limits = np.maximum(limits, SLACK * np.where(np.isfinite(moved), moved, np.inf))
        yield limits


def _rounded(random: np.random.Generator, values: Any, eps: float = float(np.finfo(float).eps)) -> Any:
    """Each off by up to half a unit of its last place."""
    return values.astype(L) * (1 + random.uniform(-eps / 2, eps / 2, values.shape).astype(L))


def judge(problem: Problem, fits: dict[str, Callable[[Problem], Found]]) -> dict[str, tuple[str, Any]]:
    """What each fit comes to, and its differences from extended precision.

    "right": within `AIM`; "rounding": within what that allows; "refused": with an error, as it may be where
    rounding makes a covariance singular; else "wrong", also of an error elsewhere.
    """
    exact, told = em(problem), {}
    for name, fit in fits.items():
        try:
            off = apart(exact, fit(problem))
        except ValueError:
            off = None
        if off is not None and (off <= AIM).all():
            told[name] = ("right", off)
        elif off is None:
            singular = any(np.isinf(limits).any() for limits in allowed(problem, exact))
            told[name] = ("refused" if singular else "wrong", off)
        else:
            within = any((off <= limits).all() for limits in allowed(problem, exact))
            told[name] = ("rounding" if within else "wrong", off)
    return told


def draw(number: int, seed: int = 0) -> Problem:
    """One problem of many, with troubles of all kinds, which its name tells."""
    random, kind = np.random.default_rng([seed, number]), [*KINDS][number % 4]
    k, d = int(random.integers(1, 6)), int(random.integers(1, 9))
    told: list[str] = []

    def trouble(name: str, chance: float) -> bool:
        if random.random() >= chance:
            return False
        told.append(name)
        return True

    labels = np.arange(40 * k) % k
    shape = np.linalg.qr(random.normal(size=(d, d)))[0]
    if d > 1 and trouble("condition", 0.4):
        shape = 10 ** (-random.uniform(1, 6) * np.linspace(0, 1, d))[:, None] * shape
    wide = trouble("separation", 0.3)
    centres = (10 ** random.uniform(2, 8) if wide else random.uniform(1, 4)) * random.normal(size=(k, d))
    unit = 10 ** random.uniform(-12, 12, size=d) if trouble("scales", 0.5) else np.ones(d)
    x = unit * ((centres if wide else centres @ shape)[labels] + random.normal(size=(len(labels), d)) @ shape)
    if trouble("offset", 0.5):
        x = x + random.choice([unit, np.ones(d)]) * random.choice([-1, 1], size=d) * 10 ** random.uniform(0, 12, d)
    reg_covar = float(random.choice([0.0, 1e-6]))
    if trouble("constant", 0.2):
        x[:, random.integers(d)] = x[0, 0]
        reg_covar = 1e-6
    if d > 1 and trouble("duplicate", 0.2):
        x[:, 0] = x[:, -1]
        reg_covar = 1e-6 * float(random.choice([1.0, max(1.0, x.var(axis=0).max())]))
    dtype = str(random.choice(["f8", "f8", "f8", "f4", "i8"]))
    x = np.rint(x).astype("i8") if dtype == "i8" else x.astype(dtype)
    weight = [None, None, random.integers(0, 4, len(x)).astype(float), 10 ** random.uniform(-3, 3, len(x))]
    name = f"{number}: {kind}, {dtype}, k={k}, d={d}, reg_covar={reg_covar:.0e}; {', '.join(told)}"
    return _started(name, kind, x, weight[random.integers(4)], reg_covar, labels)


def _started(name: str, kind: str, x: Any, weight: Any, reg_covar: float, labels: Any) -> Problem:
    """From means .3 standard deviations off those of the groups that rows were drawn in."""
    groups = [x[labels == j].astype(L) for j in np.unique(labels)]
    means = np.stack([group.mean(axis=0) for group in groups])
    variances = np.stack([group.var(axis=0) for group in groups]) + L(reg_covar)
    variances[variances == 0] = 1
    if kind == "tied":
        variances[:] = variances.mean(axis=0)
    if kind == "spherical":
        variances[:] = variances.mean(axis=1, keepdims=True)
    signs = np.where(np.arange(means.size) % 2, 0.3, -0.3).reshape(means.shape)
    shares = np.full(len(means), 1 / len(means))
    moved = (means + signs * np.sqrt(variances)).astype(float)
    return Problem(name, kind, x, weight, reg_covar, shares, moved, (1 / variances).astype(float))
