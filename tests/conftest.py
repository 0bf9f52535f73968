"""Data and an extended-precision reference that several tests share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from sklearn.datasets import load_iris, load_wine

# The same examples on every machine and every run; no deadline, as the first call may compile.
settings.register_profile(
    "daskgmm",
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("daskgmm")

DATA = Path(__file__).parent / "data"
L = np.longdouble


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Reads a golden file."""
    return lambda name: json.loads((DATA / name).read_text())


@pytest.fixture(scope="session")
def datasets() -> dict[str, Any]:
    return {
        "faithful": np.loadtxt(DATA / "faithful.csv", delimiter=",", skiprows=1),
        "iris": load_iris().data,
        "wine": load_wine().data,
    }


def _cholesky(a: Any) -> Any:
    """Lower Cholesky factor in the precision of ``a``; NumPy's own stops at float64."""
    lower = np.zeros_like(a)
    for j in range(len(a)):
        lower[j, j] = np.sqrt(a[j, j] - lower[j, :j] @ lower[j, :j])
        for i in range(j + 1, len(a)):
            lower[i, j] = (a[i, j] - lower[i, :j] @ lower[j, :j]) / lower[j, j]
    return lower


def _log_density(x: Any, mean: Any, covariance: Any) -> Any:
    lower = _cholesky(covariance)
    z = np.zeros_like(x)
    for j in range(x.shape[1]):
        z[:, j] = (x[:, j] - mean[j] - z[:, :j] @ lower[j, :j]) / lower[j, j]
    log_det = 2 * np.log(np.diag(lower)).sum()
    two_pi = 2 * np.arctan2(L(0), L(-1))
    return -(x.shape[1] * np.log(two_pi) + log_det + (z**2).sum(axis=1)) / 2


def _matrices(values: Any, kind: str, k: int, d: int) -> Any:
    """Covariances of any structure as k matrices."""
    values = np.asarray(values, dtype=L)
    if kind == "full":
        return values
    if kind == "tied":
        return np.broadcast_to(values, (k, d, d))
    return np.stack([np.diag(np.broadcast_to(v, d)) for v in values])


def _structured(scatter: Any, weight: Any, kind: str) -> Any:
    """Maximum-likelihood covariances from k scatter matrices."""
    if kind == "full":
        return scatter / weight[:, None, None]
    if kind == "tied":
        return scatter.sum(axis=0) / weight.sum()
    diagonal = np.diagonal(scatter, axis1=1, axis2=2) / weight[:, None]
    return diagonal if kind == "diag" else diagonal.mean(axis=1)


class Reference:
    """One EM step from the definitions, in extended precision, sharing no code with the package."""

    @staticmethod
    def joint(x: Any, weights: Any, means: Any, covariances: Any, kind: str) -> Any:
        """``log(weights[k] N(x[i]; k))``, (n, k)."""
        x, means, weights = (np.asarray(a, dtype=L) for a in (x, means, weights))
        matrices = _matrices(covariances, kind, *means.shape)
        with np.errstate(divide="ignore"):
            logs = np.log(weights)
        pairs = zip(means, matrices, strict=True)
        return np.stack([_log_density(x, m, c) for m, c in pairs], axis=1) + logs

    @classmethod
    def expectation(cls, x: Any, *parameters: Any) -> tuple[Any, Any]:
        """Log-densities (n,) and responsibilities (n, k)."""
        joint = cls.joint(x, *parameters)
        peak = joint.max(axis=1, keepdims=True)
        density = np.exp(joint - peak).sum(axis=1, keepdims=True)
        log_density = peak + np.log(density)
        return log_density[:, 0], np.exp(joint - log_density)

    @staticmethod
    def sums(x: Any, share: Any, reference: Any) -> tuple[Any, Any, Any]:
        """Weight (k,), shift (k, d) and scatter matrices (k, d, d) about given points."""
        x, share, reference = (np.asarray(a, dtype=L) for a in (x, share, reference))
        centred = x[None] - reference[:, None]
        shared = share.T[:, :, None] * centred
        return share.sum(axis=0), shared.sum(axis=1), np.swapaxes(shared, 1, 2) @ centred

    @classmethod
    def maximise(cls, x: Any, share: Any, kind: str, reg_covar: float = 0.0) -> tuple[Any, Any, Any]:
        """Weights, means and covariances from ``share`` (n, k), row weight times responsibility."""
        share = np.asarray(share, dtype=L)
        total = share.sum(axis=0)
        means = share.T @ np.asarray(x, dtype=L) / total[:, None]
        values = _structured(cls.sums(x, share, means)[2], total, kind)
        reg = L(reg_covar)
        values = values + (reg * np.eye(x.shape[1]) if kind in ("full", "tied") else reg)
        return total / total.sum(), means, values

    @classmethod
    def em(
        cls, x: Any, parameters: Any, kind: str, steps: int, row_weight: Any = 1.0, reg_covar: float = 0.0
    ) -> tuple[Any, Any, Any, list[Any]]:
        """Weights, means, covariances, and the mean log-likelihood that each E-step found."""
        w = np.broadcast_to(np.asarray(row_weight, dtype=L), len(x))
        trace = []
        for _ in range(steps):
            log_density, resp = cls.expectation(x, *parameters, kind)
            trace.append(w @ log_density / w.sum())
            parameters = cls.maximise(x, w[:, None] * resp, kind, reg_covar)
        return (*parameters, trace)


@pytest.fixture(scope="session")
def reference() -> type[Reference]:
    if np.finfo(L).eps > 1e-18:
        pytest.skip("long double has no more digits than float64 on this platform")
    return Reference


class Reads:
    """Counts how often each block of some rows is read, through a lazy Dask array."""

    def __init__(self, values: Any, chunks: Any) -> None:
        self.counts: dict[int, int] = {}
        self.array = da.from_array(values, chunks=chunks).map_blocks(
            self._seen, dtype=values.dtype, meta=np.empty((0, 0), values.dtype)
        )

    def _seen(self, block: Any, block_info: Any = None) -> Any:
        number = block_info[0]["chunk-location"][0]
        self.counts[number] = self.counts.get(number, 0) + 1
        return block

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@pytest.fixture
def reads() -> Iterator[type[Reads]]:
    """`Reads`, where nothing stays in memory between passes: each of them reads."""
    with dask.config.set({"daskgmm.memory-limit": 0}):
        yield Reads


@pytest.fixture(scope="session")
def clusters() -> Iterator[Callable[[int, bool], Any]]:
    """Clients of small local clusters by (workers, processes), each started at most once."""
    from distributed import Client, LocalCluster

    running: dict[tuple[int, bool], Any] = {}

    def start(workers: int, processes: bool) -> Any:
        if (workers, processes) not in running:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=processes,
                dashboard_address=":0",
            )
            running[workers, processes] = Client(cluster, set_as_default=False, timeout=30)
        return running[workers, processes]

    yield start
    for client in running.values():
        client.close(timeout=10)
        client.cluster.close(timeout=10)
