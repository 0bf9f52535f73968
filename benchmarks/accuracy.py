"""Print how far the library is from published and reference numbers.

    python benchmarks/accuracy.py

Six tables: a worked example recomputed in float64, the six Old Faithful models from the library's own seeding,
scikit-learn's parameters after 20 iterations from the same start, one step against extended precision for narrow
components in wide data, unit blobs very far apart, and 200 adversarial problems against extended precision, with
scikit-learn beside. Data and sources: ``tests/data``, ``tests/extended.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from common import unit_covariances
from sklearn.datasets import load_iris, load_wine
from sklearn.mixture import GaussianMixture as Sklearn

from daskgmm import GaussianMixture

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
from tests.extended import Found, Problem, draw, judge  # noqa: E402

DATA = ROOT / "tests" / "data"
KINDS: tuple[Any, ...] = ("full", "tied", "diag", "spherical")
OUTCOMES = ("right", "rounding", "refused", "wrong")
TROUBLES = ("scales", "offset", "constant", "duplicate", "condition", "separation")


def faithful() -> Any:
    """Old Faithful: 272 eruptions, two features."""
    return np.loadtxt(DATA / "faithful.csv", delimiter=",", skiprows=1)


def worked_example() -> Iterator[tuple[str, float]]:
    """Largest absolute error of each quantity, over one row per block and all rows in one block."""
    golden = json.loads((DATA / "mml_example.json").read_text())
    x = np.array(golden["x"])[:, None]
    start = golden["initial"]
    for name, chunk in (("one row per block", 1), ("one block", len(x))):
        rows = da.from_array(x, chunks=(chunk, 1))

        def fit(iterations: int, rows: Any = rows) -> GaussianMixture:
            model = GaussianMixture(
                3,
                tol=0,
                reg_covar=0,
                max_iter=iterations,
                weights_init=start["weights"],
                means_init=np.array(start["means"])[:, None],
                precisions_init=1 / np.array(start["variances"])[:, None, None],
            )
            model.fit(rows)
            return model

        resp = fit(0).predict_proba(rows).compute()
        yield f"{name}: responsibilities", np.abs(resp - golden["responsibilities_first_e_step"]).max()
        for entry in golden["parameters_after_iteration"]:
            model, worst = fit(entry["iteration"]), 0.0
            for found, wanted in (
                (model.weights_ * len(x), entry["N"]),
                (model.weights_, entry["weights"]),
                (model.means_[:, 0], entry["means"]),
                (model.covariances_[:, 0, 0], entry["variances"]),
            ):
                worst = max(worst, float(np.abs(found - np.array(wanted)).max()))
            yield f"{name}: parameters after iteration {entry['iteration']}", worst
        series = np.array(golden["negative_log_likelihood"])
        bounds = -len(x) * np.array(fit(len(series)).lower_bounds_)
        yield f"{name}: negative log-likelihoods", np.abs(bounds - series).max()


def published() -> Iterator[tuple[str, float]]:
    """Converged log-likelihood of each Old Faithful model less the reference."""
    x = faithful()
    for model in json.loads((DATA / "faithful_reference.json").read_text())["models"]:
        k, kind = model["n_components"], model["covariance_type"]
        found = GaussianMixture(
            k, covariance_type=kind, n_init=10, reg_covar=0, tol=1e-8, max_iter=5000, random_state=0
        ).fit(x)
        yield f"{kind}, {k}", found.score(x) * len(x) - model["converged_log_likelihood"]


def parity() -> Iterator[tuple[str, float]]:
    """Against scikit-learn from one start: mean log-likelihood, weights and means, covariances by norm."""
    for name, x in (("faithful", faithful()), ("iris", load_iris().data), ("wine", load_wine().data)):
        for kind in KINDS:
            first = Sklearn(3, covariance_type=kind, random_state=0, max_iter=1).fit(x)
            start = {
                "weights_init": first.weights_,
                "means_init": first.means_,
                "precisions_init": first.precisions_,
            }
            theirs = Sklearn(3, covariance_type=kind, tol=0, max_iter=20, **start).fit(x)
            ours = GaussianMixture(3, covariance_type=kind, tol=0, max_iter=20, **start)
            ours.fit(da.from_array(x, chunks=(41, 1)))
            bounds = np.abs(np.array(ours.lower_bounds_) - theirs.lower_bounds_).max()
            parameters = max(
                np.abs(ours.weights_ - theirs.weights_).max(), np.abs(ours.means_ - theirs.means_).max()
            )
            off = np.linalg.norm(ours.covariances_ - theirs.covariances_)
            covariance = float(off / np.linalg.norm(theirs.covariances_))
            yield f"{name}, {kind}: mean log-likelihood", bounds
            yield f"{name}, {kind}: weights and means", parameters
            yield f"{name}, {kind}: covariances", covariance


def extended_step(x: Any, model: GaussianMixture, kind: str) -> tuple[Any, Any, Any]:
    """Weights, means and covariances after one EM step from a model's parameters, in np.longdouble throughout."""
    x = x.astype(np.longdouble)
    weights, means, factor = (
        np.asarray(a, dtype=np.longdouble) for a in (model.weights_, model.means_, model.precisions_cholesky_)
    )
    k, d = means.shape
    full = {
        "full": lambda: factor,
        "tied": lambda: np.stack([factor] * k),
        "diag": lambda: factor[:, :, None] * np.eye(d, dtype=np.longdouble),
        "spherical": lambda: factor[:, None, None] * np.eye(d, dtype=np.longdouble),
    }[kind]()
    z = np.stack([(x - m) @ f for m, f in zip(means, full, strict=True)], axis=1)  # (n, k, d)
    log_det = np.log(np.einsum("kii->ki", full)).sum(axis=1)
    joint = np.log(weights) + log_det - (z**2).sum(axis=2) / 2
    resp = np.exp(joint - joint.max(axis=1, keepdims=True))
    resp /= resp.sum(axis=1, keepdims=True)
    mass = resp.sum(axis=0)
    means = resp.T @ x / mass[:, None]
    centred = [x - m for m in means]
    scatter = np.stack([(r[:, None] * c).T @ c for r, c in zip(resp.T, centred, strict=True)])
    variances = np.einsum("kii->ki", scatter) / mass[:, None]
    covariances = {
        "full": scatter / mass[:, None, None],
        "tied": scatter.sum(axis=0) / len(x),
        "diag": variances,
        "spherical": variances.mean(axis=1),
    }[kind]
    return mass / len(x), means, covariances


def step_errors(x: Any, begin: dict[str, Any], kind: Any) -> tuple[float, float]:
    """Of one step from equal parameters: means in standard deviations, covariances by norm; the worst."""
    rows = da.from_array(x, chunks=(997, x.shape[1]))
    start, ours = (
        GaussianMixture(len(begin["means_init"]), covariance_type=kind, tol=0, reg_covar=0, max_iter=m, **begin)
        for m in (0, 1)
    )
    _, means, covariances = extended_step(x, start.fit(rows), kind)
    ours.fit(rows)
    variances = np.diagonal(covariances, axis1=-2, axis2=-1) if kind in ("full", "tied") else covariances
    sigma = np.sqrt(variances[:, None] if kind == "spherical" else variances)
    parts = covariances.reshape(1 if kind == "tied" else len(means), -1)
    off = np.linalg.norm((ours.covariances_ - covariances).reshape(parts.shape).astype(float), axis=1)
    return (
        float((np.abs(ours.means_ - means) / sigma).max()),
        float((off / np.linalg.norm(parts.astype(float), axis=1)).max()),
    )


def begin_at(means: Any, variance: float, kind: str) -> dict[str, Any]:
    """A start with equal weights and one variance for every component."""
    k, d = means.shape
    return {
        "weights_init": np.full(k, 1 / k),
        "means_init": means,
        "precisions_init": unit_covariances(d, k, kind) / variance,
    }


def extended() -> Iterator[tuple[str, float]]:
    """Pairs of overlapping components with σ 1e-6 of the distance between the pairs."""
    random = np.random.default_rng(0)
    for kind in KINDS:
        for d in (3, 16):
            pairs = np.repeat(random.normal(size=(4, d)), 2, axis=0)
            centres = pairs + 1e-6 * random.normal(size=pairs.shape) / np.sqrt(d / 3)
            shape: Any = np.eye(d) if kind == "spherical" else np.diag(np.linspace(0.5, 2, d))
            if kind in ("full", "tied"):
                shape = np.linalg.cholesky(0.5 * shape + 0.5)
            x = centres[random.integers(8, size=6000)] + 1e-6 * random.normal(size=(6000, d)) @ shape.T
            begin = begin_at(centres + 3e-7 * random.normal(size=centres.shape), 1e-12, kind)
            mean, covariance = step_errors(x, begin, kind)
            yield f"{kind}, {d} features: means, in σ", mean
            yield f"{kind}, {d} features: covariances", covariance


def far_apart() -> Iterator[tuple[str, float]]:
    """Ten iterations over unit blobs: smallest and largest variance found less one; one step's error before them.

    The rows themselves are known to 1e-8 there, so no mean can be known better.
    """
    random = np.random.default_rng(1)
    for name, centres in (("1e8 apart", [[0.0] * 3, [1e8] * 3]), ("at offset 1e8", [[1e8] * 3, [1e8 + 8] * 3])):
        means = np.array(centres)
        x = means[random.integers(2, size=20_000)] + random.normal(size=(20_000, 3))
        for kind in KINDS:
            begin = begin_at(means + 0.25, 1, kind)
            mean, covariance = step_errors(x, begin, kind)
            yield f"{name}, {kind}: one step, means, in σ", mean
            yield f"{name}, {kind}: one step, covariances", covariance
            found = GaussianMixture(2, covariance_type=kind, tol=0, reg_covar=0, max_iter=10, **begin).fit(x)
            spectrum = np.linalg.eigvalsh(found.covariances_) if kind in ("full", "tied") else found.covariances_
            yield f"{name}, {kind}: ten steps, furthest variance from 1", np.abs(spectrum - 1).max()


def ours(problem: Problem) -> Found:
    """Of one of the adversarial problems."""
    model = GaussianMixture(len(problem.weights), **problem.settings)
    return problem.found(model.fit(problem.x, sample_weight=problem.weight))


def theirs(problem: Problem) -> Found:
    """The same by scikit-learn, which has no weights: rows as often as they count."""
    x = problem.x if problem.weight is None else np.repeat(problem.x, problem.weight.astype(int), axis=0)
    return problem.found(Sklearn(len(problem.weights), **problem.settings).fit(x))


def adversarial(count: int = 200) -> Iterator[str]:
    """How many are right, right as far as rounding allows, refused where rounding makes a covariance singular, and
    wrong: of us and, where weights are whole numbers, of scikit-learn; and the problems that we get wrong.
    """
    table, wrong = Counter[tuple[str, str, str]](), []
    for number in range(count):
        problem = draw(number)
        whole = problem.weight is None or bool((problem.weight == np.rint(problem.weight)).all())
        told = judge(problem, {"ours": ours} | ({"theirs": theirs} if whole else {}))
        if told["ours"][0] == "wrong":
            wrong.append(f"wrong: {problem.name}, off by {told['ours'][1]}")
        groups = ["all", problem.kind, str(problem.x.dtype), *(t for t in TROUBLES if t in problem.name)]
        table.update((group, who, outcome) for group in groups for who, (outcome, _) in told.items())
    yield f"{'':<12}" + "".join(f"{who:>12}" + f"{'':30}" for who in ("ours", "scikit-learn"))
    yield f"{'':<12}" + 2 * (f"{'of':>6}" + "".join(f"{outcome:>9}" for outcome in OUTCOMES))
    for group in ("all", *KINDS, "float64", "float32", "int64", *TROUBLES):
        line = f"{group:<12}"
        for who in ("ours", "theirs"):
            counts = [table[group, who, outcome] for outcome in OUTCOMES]
            line += f"{sum(counts):>6}" + "".join(f"{n:>9}" for n in counts)
        yield line
    yield from wrong


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200, help="adversarial problems (default: %(default)s)")
    count = parser.parse_args().problems
    warnings.simplefilter("ignore")
    for title, table in (
        ("Worked example, largest absolute error", worked_example()),
        ("Old Faithful, converged log-likelihood less the reference", published()),
        ("scikit-learn, same start, 20 iterations, largest difference", parity()),
        ("Extended precision, σ 1e-6 of the spread, one step without reg_covar, largest error", extended()),
        ("Unit blobs, without reg_covar", far_apart()),
    ):
        print(title)
        for name, value in table:
            print(f"  {name:<60}{value:10.1e}")
    print(f"Extended precision, {count} adversarial problems, 20 iterations from the same start")
    for line in adversarial(count):
        print(f"  {line}")


if __name__ == "__main__":
    main()
