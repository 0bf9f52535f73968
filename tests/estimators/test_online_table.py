"""What online EM may be told, alone and by twos: all of it works with weights, on NumPy, Dask and Zarr."""

from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from daskgmm import MiniBatchGaussianMixture, load
from daskgmm.cli import main

N, D, K = 120, 3, 2
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(K, size=N)
X = 3.0 * LABELS[:, None] + RANDOM.normal(size=(N, D))
HOLED = np.where(RANDOM.random(X.shape) < 0.15, np.nan, X)
WEIGHT = RANDOM.choice([0.0, 1.0, 2.0], size=N)
NOISE = RANDOM.gamma(1.0, 0.2, size=X.shape)
MEANS = np.array([[0.0] * D, [3.0] * D])

# What goes with the rows, and settings.
TOLD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "noise": ({"noise": NOISE}, {}),
    "known": ({"known": np.where(RANDOM.random(N) < 0.3, LABELS, -1)}, {}),
    "frozen": ({}, {"frozen": {"means": [0]}, "means_init": MEANS}),
    "background": ({}, {"background": True}),
    "prior": ({}, {"prior": "weak"}),
    "missing": ({}, {"nan_policy": "missing"}),
}
ALONE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "noise matrices": ({"noise": NOISE[:, :, None] * np.eye(D)}, {}),
    **{name: ({}, {"covariance_type": name}) for name in ("tied", "diag", "spherical", "tied_diag", "EEV")},
    "factors": ({}, {"covariance_type": "factors", "n_factors": 1}),
}
CASES: list[tuple[str, ...]] = [
    (),
    *((name,) for name in (*TOLD, *ALONE)),
    *combinations(TOLD, 2),
    ("noise", "known", "frozen", "background", "prior", "missing", "diag"),
]
PARTS = ("weights_", "means_", "covariances_")
Make = Callable[[Any], Any]


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Make]:
    """What makes each kind of input, in as many chunks as its name says."""

    def stored(values: Any, rows: int) -> str:
        place = str(tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr")
        how: Any = {"shape": values.shape, "chunks": (rows, *values.shape[1:]), "dtype": values.dtype}
        array = zarr.create_array(place, **how, config={"write_empty_chunks": True})
        array[...] = values
        return place

    return {
        "numpy": lambda v: v,
        "dask": lambda v: da.from_array(v, chunks=-1),
        "dask 4": lambda v: da.from_array(v, chunks=(N // 4, *v.shape[1:])),
        "zarr 4": lambda v: stored(v, N // 4),
    }


def told(case: tuple[str, ...]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Rows, what goes with them, and settings."""
    beside, how = {"sample_weight": WEIGHT}, dict[str, Any]()
    for name in case:
        more = (TOLD | ALONE)[name]
        beside, how = beside | more[0], how | more[1]
    return HOLED if "missing" in case else X, beside, how


def online(how: dict[str, Any]) -> MiniBatchGaussianMixture:
    return MiniBatchGaussianMixture(**{"n_components": K, "random_state": 0, "init_size": 40, **how})


def fitted(case: tuple[str, ...], make: Make, rows: int) -> MiniBatchGaussianMixture:
    x, beside, how = told(case)
    return online(how | {"max_iter": 2, "block_size": rows * 8 * D}).fit(
        make(x), **{name: make(values) for name, values in beside.items()}
    )


def streamed(case: tuple[str, ...], make: Make, rows: int) -> MiniBatchGaussianMixture:
    x, beside, how = told(case)
    model = online(how)
    for first in range(0, N, 40):
        part = slice(first, first + 40)
        model.partial_fit(make(x[part]), **{name: make(values[part]) for name, values in beside.items()})
    return model


@cache
def untold(learn: Callable[..., MiniBatchGaussianMixture]) -> MiniBatchGaussianMixture:
    """A model of the rows and their weights alone."""
    return learn((), lambda values: values, 10 * N)


@pytest.mark.parametrize("learn", [fitted, streamed])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case) or "plain")
@pytest.mark.filterwarnings("ignore:.*no value at all")
def test_every_kind_of_rows_is_learnt_alike(case: Any, learn: Any, made: dict[str, Make]) -> None:
    kinds = made if learn is fitted else made.keys() - {"dask"}
    models = {name: learn(case, made[name], N // 4 if "4" in name else 10 * N) for name in kinds}
    pairs = [("dask 4", "zarr 4"), ("numpy", "dask" if learn is fitted else "zarr 4")]  # blocks of one size
    for one, other in pairs:
        for name in PARTS:
            found, same = getattr(models[one], name), getattr(models[other], name)
            np.testing.assert_allclose(found, same, rtol=1e-12, atol=1e-12, err_msg=f"{one}, {other}: {name}")
    plain = untold(learn)
    assert models["numpy"].n_samples_seen_ == plain.n_samples_seen_
    changed = any(not np.array_equal(getattr(models["numpy"], p), getattr(plain, p)) for p in PARTS)
    assert changed == bool(case)  # what it is told is heeded
    if "frozen" in case:
        assert np.array_equal(models["zarr 4"].means_[0], MEANS[0])


@pytest.mark.parametrize("case", [c for c in CASES if len(c) != 2], ids=lambda case: "-".join(case) or "plain")
@pytest.mark.filterwarnings("ignore:.*no value at all")
def test_the_command_line_learns_the_same(case: tuple[str, ...], tmp_path: Path) -> None:
    x, beside, how = told(case)
    words: list[Any] = [tmp_path / "x.npy", "-k", K, "--online", "--seed", 0, "--init-size", 40]
    for name, value in {**beside, **how}.items():
        option, held = "--weights" if name == "sample_weight" else f"--{name.replace('_', '-')}", value
        if name == "frozen":
            held = how["frozen"] = "means"  # of all components
        elif isinstance(value, np.ndarray):
            np.save(held := tmp_path / f"{name}.npy", value)
        words += [option] if value is True else [option, held]
    np.save(tmp_path / "x.npy", x)
    result = CliRunner().invoke(main, ["fit", *map(str, words), "--out", str(tmp_path / "m.npz")])
    assert result.exit_code == 0, result.output
    model = online(how).fit(str(tmp_path / "x.npy"), **beside)
    for name in PARTS:
        assert np.array_equal(getattr(load(tmp_path / "m.npz"), name), getattr(model, name)), name
