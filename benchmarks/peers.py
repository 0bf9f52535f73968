"""One library in a process of its own: reads questions as lines of JSON, answers each with one line.

    python benchmarks/peers.py NAME THREADS

Started by the other scripts, with the interpreter that has the library; needs NumPy beside it. Every library gets
the same rows and the same start, and makes exactly the iterations asked for.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Fit = Callable[[int], dict[str, Any]]  # iterations -> weights, means, covariances


def dask_rows(x: Any) -> Any:
    """A Dask array over rows in memory: chunks of 64 MiB at most, and at least 16 of them."""
    import dask.array as da

    chunk = min(2**26 // (x.shape[1] * x.itemsize), -(-len(x) // 16))
    return da.from_array(x, chunks=(max(chunk, 1), x.shape[1]), name=False)


def parameters(model: Any) -> dict[str, Any]:
    """Of a fitted estimator with scikit-learn's attributes."""
    return {"weights": model.weights_, "means": model.means_, "covariances": model.covariances_}


def arguments(start: dict[str, Any], kind: str) -> dict[str, Any]:
    """Constructor arguments, alike in scikit-learn and here. Unit covariances are unit precisions."""
    return {
        "n_components": len(start["means"]),
        "covariance_type": kind,
        "tol": 0,
        "reg_covar": 0,
        "weights_init": start["weights"],
        "means_init": start["means"],
        "precisions_init": start["covariances"],
    }


def daskgmm(x: Any, start: dict[str, Any], kind: str, threads: int) -> Fit:
    """Through the public ``fit``, on a Dask array in memory, or on the store that ``x`` is."""
    import dask

    from daskgmm import GaussianMixture

    dask.config.set(num_workers=threads)
    rows = dask_rows(x) if isinstance(x, np.ndarray) else x
    return lambda iterations: parameters(GaussianMixture(max_iter=iterations, **arguments(start, kind)).fit(rows))


def daskgmm_float32(x: Any, start: dict[str, Any], kind: str, threads: int) -> Fit:
    """The same rows, rounded to float32."""
    return daskgmm(x.astype(np.float32), start, kind, threads)


def scikit_learn(x: Any, start: dict[str, Any], kind: str, threads: int) -> Fit:
    """From given parameters, with the cheapest start of its own, which it makes all the same."""
    from sklearn.mixture import GaussianMixture

    own = {"init_params": "random_from_data", "random_state": 0}
    return lambda iterations: parameters(
        GaussianMixture(max_iter=iterations, **own, **arguments(start, kind)).fit(x)
    )


def one_dal(x: Any, start: dict[str, Any], kind: str, threads: int) -> Fit:
    """oneDAL's em_gmm through daal4py; full and diag only."""
    import daal4py

    daal4py.daalinit(threads)
    if kind not in ("full", "diag"):
        raise NotImplementedError(f"no {kind} covariances")
    k = len(start["means"])
    storage = "full" if kind == "full" else "diagonal"
    unit = [c if kind == "full" else c[None] for c in start["covariances"]]

    def fit(iterations: int) -> dict[str, Any]:
        algorithm = daal4py.em_gmm(
            nComponents=k, maxIterations=iterations, accuracyThreshold=0.0, covarianceStorage=storage
        )
        found = algorithm.compute(x, start["weights"][None], start["means"], unit)
        if found.nIterations[0, 0] != iterations:
            raise RuntimeError(f"made {found.nIterations[0, 0]} of {iterations} iterations")
        covariances = np.stack([np.asarray(c) for c in found.covariances])
        covariances = covariances if kind == "full" else covariances[:, 0]
        return {"weights": found.weights[0], "means": found.means, "covariances": covariances}

    return fit


def spark(x: Any, start: dict[str, Any], kind: str, threads: int) -> Fit:
    """Spark ML. It takes no start: its own random one, so only its time is comparable, not its likelihood."""
    from pyspark.ml.clustering import GaussianMixture
    from pyspark.ml.feature import VectorAssembler
    from pyspark.sql import SparkSession

    if kind != "full":
        raise NotImplementedError(f"no {kind} covariances")
    builder = SparkSession.builder.master(f"local[{threads}]").config("spark.driver.memory", "8g")
    builder = builder.config("spark.sql.execution.arrow.pyspark.enabled", "true")
    session = builder.config("spark.ui.enabled", "false").getOrCreate()
    frame = session.createDataFrame(x)
    rows = VectorAssembler(inputCols=frame.columns, outputCol="features").transform(frame).select("features")
    rows = rows.repartition(4 * threads).cache()
    rows.count()

    def fit(iterations: int) -> dict[str, Any]:
        model = GaussianMixture(k=len(start["means"]), tol=0.0, maxIter=iterations, seed=0).fit(rows)
        if model.summary.numIter != iterations:
            raise RuntimeError(f"made {model.summary.numIter} of {iterations} iterations")
        gaussians = model.gaussians
        return {
            "weights": np.array(model.weights),
            "means": np.stack([g.mean.toArray() for g in gaussians]),
            "covariances": np.stack([g.cov.toArray() for g in gaussians]),
        }

    return fit


def pomegranate(x: Any, start: dict[str, Any], kind: str, threads: int) -> Fit:
    """pomegranate on PyTorch tensors of float64."""
    import torch
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    if kind not in ("full", "diag"):
        raise NotImplementedError(f"no {kind} covariances in this comparison")
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float64)
    rows = torch.from_numpy(x)

    def fit(iterations: int) -> dict[str, Any]:
        pairs = zip(start["means"], start["covariances"], strict=True)
        normals = [Normal(m.copy(), c.copy(), covariance_type=kind) for m, c in pairs]
        model = GeneralMixtureModel(normals, priors=start["weights"], max_iter=iterations, tol=-np.inf)
        model.fit(rows)
        return {
            "weights": model.priors.numpy(),
            "means": np.stack([g.means.numpy() for g in model.distributions]),
            "covariances": np.stack([g.covs.numpy() for g in model.distributions]),
        }

    return fit


PEERS = {
    "daskgmm": daskgmm,
    "daskgmm-before": daskgmm,  # of another interpreter
    "daskgmm float32": daskgmm_float32,
    "daskgmm-before float32": daskgmm_float32,
    "oneDAL": one_dal,
    "scikit-learn": scikit_learn,
    "Spark ML": spark,
    "pomegranate": pomegranate,
}


def peak_mib() -> float:
    """The highest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells on Linux may be of the process that started this one
        (mark,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(mark) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that an action took, and its result."""
    begun = time.perf_counter()
    result = action()
    return time.perf_counter() - begun, result


def save(path: str, found: dict[str, Any]) -> str:
    """Parameters in a file beside the rows, for the judge."""
    name = str(Path(path).with_suffix(f".{os.getpid()}.npz"))
    np.savez(name, **found)
    return name


def load(question: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Rows in memory, or the store, and the start."""
    path = Path(question["path"])
    with np.load(question["start"]) as file:
        start = dict(file)
    if path.suffix == ".npy":
        return np.array(np.load(path, mmap_mode="r")[: question["n"]]), start
    import zarr

    return zarr.open_array(path, mode="r"), start


def iterations(name: str, threads: int, question: dict[str, Any]) -> dict[str, Any]:
    """Cost of an iteration: the difference between two counts over the difference of the counts, median."""
    x, start = load(question)
    short, long = question.get("counts", (2, 5))
    fit = PEERS[name](x, start, question["kind"], threads)
    fit(1)  # compile and warm up
    seconds = []
    for _ in range(question.get("repeats", 5)):
        less, more = timed(lambda: fit(short)), timed(lambda: fit(long))
        seconds.append((more[0] - less[0]) / (long - short))
    found = more[1]
    if len(seconds) > 1 and not np.median(seconds) > 0:  # a single one is one of several rounds
        raise RuntimeError("an iteration is too short to time: more rows, please")
    answer: dict[str, Any] = {"seconds": float(np.median(seconds)), "parameters": save(question["path"], found)}
    if question.get("count_tasks"):
        answer["tasks"] = (tasks(lambda: fit(long)) - tasks(lambda: fit(short))) / (long - short)
        answer["peak_mib"] = peak_mib()
    return answer


def tasks(action: Callable[[], Any]) -> int:
    """Dask tasks that ran."""
    from dask.callbacks import Callback

    count = []
    with Callback(posttask=lambda key, *_: count.append(key)):
        action()
    return len(count)


def default_fit(name: str, threads: int, question: dict[str, Any]) -> dict[str, Any]:
    """A whole fit with every parameter at its default, its own start included."""
    import dask
    from sklearn.mixture import GaussianMixture

    dask.config.set(num_workers=threads)
    x, _ = load(question)
    rows: Any = x
    if name != "scikit-learn":
        from daskgmm import GaussianMixture

        rows = dask_rows(x.astype(np.float32) if name.endswith("float32") else x)
        GaussianMixture(2, max_iter=1, random_state=0).fit(dask_rows(x[:30_000]))  # compile
    model = GaussianMixture(question["k"], covariance_type=question["kind"], random_state=0)
    seconds = [timed(lambda: model.fit(rows))[0] for _ in range(question.get("repeats", 1))]
    return {
        "seconds": float(np.median(seconds)),
        "parameters": save(question["path"], parameters(model)),
        "n_iter": int(model.n_iter_),
    }


def query(name: str, threads: int, question: dict[str, Any]) -> dict[str, Any]:
    """`predict` or `score_samples` of every row under the start; the mean answer shows that they agree."""
    import dask

    dask.config.set(num_workers=threads)
    x, start = load(question)
    rows: Any = x
    if name == "scikit-learn":
        from sklearn.mixture import GaussianMixture

        model = GaussianMixture(question["k"], covariance_type=question["kind"])
        model.weights_, model.means_ = start["weights"], start["means"]
        model.covariances_ = model.precisions_ = model.precisions_cholesky_ = start["covariances"]
    else:
        from daskgmm import GaussianMixture

        model = GaussianMixture.from_parameters(*start.values(), covariance_type=question["kind"])
        rows = dask_rows(x.astype(np.float32) if name.endswith("float32") else x)

    def answer(part: Any) -> Any:
        return np.asarray(getattr(model, question["query"])(part))

    answer(rows[:2000])  # compile
    seconds, mean = [], np.nan
    for _ in range(question.get("repeats", 5)):
        elapsed, found = timed(lambda: answer(rows))
        seconds.append(elapsed)
        mean = float(found.mean())
        # Let go before the next: pages that the machine never had in use cost more than they take to fill.
        del found
    return {"seconds": float(np.median(seconds)), "mean": mean}


def online_cost(name: str, threads: int, question: dict[str, Any]) -> dict[str, Any]:
    """One pass of an online fit over a store, and one iteration of batch EM, seeding excluded; medians."""
    import dask

    from daskgmm import GaussianMixture, MiniBatchGaussianMixture

    dask.config.set(num_workers=threads)
    store, start = load(question)
    k, begin = question["k"], {f"{name}_init": value for name, value in start.items()}
    MiniBatchGaussianMixture(k, random_state=0, **begin).fit(store[: store.chunks[0]])  # compile
    online = MiniBatchGaussianMixture(k, random_state=0, **begin)
    batch = GaussianMixture(k, max_iter=1, warm_start=True, **begin).fit(store)
    pairs = [
        (timed(lambda: online.fit(store))[0], timed(lambda: batch.fit(store))[0])
        for _ in range(question.get("repeats", 3))
    ]
    seconds, iteration = np.median(pairs, axis=0)
    return {
        "seconds": float(seconds),
        "iteration": float(iteration),
        "ratio": float(np.median([a / b for a, b in pairs])),
        "batches": int(online.n_batches_seen_),
        "parameters": save(question["path"], parameters(online)),
    }


def where(name: str, threads: int, question: dict[str, Any]) -> dict[str, Any]:
    """The folder that daskgmm comes from."""
    import daskgmm

    return {"where": str(Path(daskgmm.__file__).parent)}


TASKS = {
    "iterations": iterations,
    "default_fit": default_fit,
    "query": query,
    "online_cost": online_cost,
    "where": where,
}


def main() -> None:
    """Answer until the questions end."""
    name, threads = sys.argv[1], int(sys.argv[2])
    warnings.simplefilter("ignore")
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = TASKS[question["task"]](name, threads, question)
        except ImportError as error:
            answer = {"error": f"not installed ({error.name})"}
        except Exception as error:
            answer = {"error": f"fails: {str(error).strip()[:200] or type(error).__name__}"}
        reply.write(json.dumps(answer) + "\n")
        reply.flush()


if __name__ == "__main__":
    main()
