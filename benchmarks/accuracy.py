"""Print how far the library is from published and reference numbers.

    python benchmarks/accuracy.py

Three tables: a worked example recomputed in float64, the six Old Faithful models from the library's own seeding,
and scikit-learn's parameters after 20 iterations from the same start. Data and sources: ``tests/data``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from sklearn.datasets import load_iris, load_wine
from sklearn.mixture import GaussianMixture as Sklearn

from daskgmm import GaussianMixture

DATA = Path(__file__).parents[1] / "tests" / "data"
KINDS = ("full", "tied", "diag", "spherical")


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
            return GaussianMixture(
                3,
                tol=0,
                reg_covar=0,
                max_iter=iterations,
                weights_init=start["weights"],
                means_init=np.array(start["means"])[:, None],
                precisions_init=1 / np.array(start["variances"])[:, None, None],
            ).fit(rows)

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
            covariance = np.linalg.norm(ours.covariances_ - theirs.covariances_)
            covariance /= np.linalg.norm(theirs.covariances_)
            yield f"{name}, {kind}: mean log-likelihood", bounds
            yield f"{name}, {kind}: weights and means", parameters
            yield f"{name}, {kind}: covariances", covariance


def main() -> None:
    """Print the three tables."""
    warnings.simplefilter("ignore")
    for title, table in (
        ("Worked example, largest absolute error", worked_example()),
        ("Old Faithful, converged log-likelihood less the reference", published()),
        ("scikit-learn, same start, 20 iterations, largest difference", parity()),
    ):
        print(title)
        for name, value in table:
            print(f"  {name:<55}{value:10.1e}")


if __name__ == "__main__":
    main()
