"""Features by their names and rows with their labels, through fits, queries, streams and checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray as xr

from daskgmm import DataError, GaussianMixture, MiniBatchGaussianMixture

dd = pytest.importorskip("dask.dataframe")
pa = pytest.importorskip("pyarrow")

N = 120
LABELS = np.arange(N) % 2
X = np.random.default_rng(0).normal(size=(N, 2)) * [1, 30] + 6 * LABELS[:, None]
MASK = np.random.default_rng(1).random((N, 2)) < 0.1

FRAMES: dict[str, Callable[[Any, list[str]], Any]] = {
    "pandas": lambda x, names: pd.DataFrame(x, columns=names),
    "polars": lambda x, names: pl.DataFrame(x, schema=names),
    "arrow": lambda x, names: pa.table(dict(zip(names, x.T, strict=True))),
    "dask frame": lambda x, names: dd.from_pandas(pd.DataFrame(x, columns=names), npartitions=3),
    "xarray": lambda x, names: xr.DataArray(x, dims=("time", "band"), coords={"band": names}),
    "xarray, dask": lambda x, names: xr.DataArray(x, dims=("time", "band"), coords={"band": names}).chunk(time=50),
}


def path(x: Any, names: list[str], folder: Path) -> str:
    pd.DataFrame(x, columns=names).to_parquet(folder / f"{names[0]}.parquet")
    return str(folder / f"{names[0]}.parquet")


@pytest.mark.filterwarnings("error:X does not have valid feature names")
@pytest.mark.parametrize("kind", [*FRAMES, "path"])
@pytest.mark.parametrize("estimator", [GaussianMixture, MiniBatchGaussianMixture])
def test_features_are_those_of_the_fit(kind: str, estimator: Any, tmp_path: Path) -> None:
    def held(x: Any, names: list[str]) -> Any:
        return path(x, names, tmp_path) if kind == "path" else FRAMES[kind](x, names)

    model = estimator(2, random_state=0).fit(held(X, ["a", "b"]))
    assert model.feature_names_in_.tolist() == ["a", "b"]
    expected = model.score(pd.DataFrame(X, columns=["a", "b"]))
    np.testing.assert_allclose(model.score(held(X, ["a", "b"])), expected, rtol=1e-12)
    turned = held(X[:, ::-1].copy(), ["b", "a"])
    for refused in (model.score, model.predict, model.set_params(warm_start=True).fit):
        with pytest.raises(DataError, match=r"must be in the same order as they were in fit\.\nThat was: a, b\."):
            refused(turned)
    with pytest.raises(
        DataError, match="unseen at fit time:\n- c\nFeature names seen at fit time, yet now missing:\n- a"
    ):
        model.score(held(X, ["c", "b"]))
    if estimator is MiniBatchGaussianMixture:
        with pytest.raises(DataError, match="must be in the same order"):
            model.partial_fit(turned)


def test_a_finished_checkpoint_is_of_features_in_one_order(tmp_path: Path) -> None:
    model = GaussianMixture(2, random_state=0, checkpoint=tmp_path / "fit.ckpt")
    model.fit(FRAMES["pandas"](X, ["a", "b"]))
    with pytest.raises(DataError, match=r"X's features: \['a', 'b'\] there, \['b', 'a'\] now"):
        model.fit(FRAMES["pandas"](X[:, ::-1].copy(), ["b", "a"]))


def test_masked_rows_are_rows_left_out() -> None:
    masked, kept = np.ma.array(X, mask=MASK), ~MASK.any(axis=1)
    expected = GaussianMixture(2, random_state=0).fit(X[kept])
    model = GaussianMixture(2, random_state=0, nan_policy="omit").fit(masked)
    np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(masked) == -1, ~kept)
    np.testing.assert_allclose(model.score(masked), expected.score(X[kept]), rtol=1e-12)
    stream = MiniBatchGaussianMixture(2, random_state=0, nan_policy="omit").partial_fit(masked)
    assert stream.n_samples_seen_ == kept.sum()
    with pytest.raises(DataError, match="Input X contains NaN"):
        model.set_params(nan_policy="raise").fit(masked)


def test_masked_weights_are_rows_left_out() -> None:
    weight = np.ma.array(1.0 + LABELS, mask=MASK[:, 0])
    kept = ~MASK[:, 0]
    expected = GaussianMixture(2, random_state=0).fit(X[kept], sample_weight=weight.data[kept])
    found = GaussianMixture(2, random_state=0, nan_policy="omit").fit(X, sample_weight=weight)
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-12)
    np.testing.assert_allclose(
        found.score(X, sample_weight=weight), expected.score(X[kept], sample_weight=weight.data[kept]), rtol=1e-12
    )


@pytest.mark.parametrize("name", ["labels_init", "responsibilities_init"])
def test_a_start_leaves_out_what_it_misses(name: str) -> None:
    kept, mask = ~MASK[:, 0], MASK[:, :1]
    whole: Any = LABELS if name == "labels_init" else np.eye(2)[LABELS]
    start: Any = np.ma.array(whole, mask=np.broadcast_to(mask if whole.ndim == 2 else mask[:, 0], whole.shape))
    settings: dict[str, Any] = {"max_iter": 0}
    expected = GaussianMixture(2, **settings, **{name: whole[kept]}).fit(X[kept])
    model = GaussianMixture(2, **settings, **{name: start}, nan_policy="omit").fit(X)
    np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-12)
    with pytest.raises(DataError, match=f'{name} has missing values in block 0. nan_policy="omit"'):
        model.set_params(nan_policy="raise").fit(X)
    weighed = model.fit(X, sample_weight=kept.astype(float))  # rows of zero weight need no label
    np.testing.assert_allclose(weighed.means_, expected.means_, rtol=1e-12)
    model.set_params(nan_policy="omit", **{name: np.ma.array(start, mask=True)})
    with pytest.raises(DataError, match="No row that weighs anything has a label"):
        model.fit(X)


@pytest.mark.parametrize("name", ["weights_init", "means_init", "precisions_init"])
def test_a_masked_start_is_refused(name: str) -> None:
    shapes = {"weights_init": (2,), "means_init": (2, 2), "precisions_init": (2, 2, 2)}
    start: Any = np.ma.array(np.full(shapes[name], 0.5), mask=True)
    with pytest.raises(ValueError, match="contains NaN"):
        GaussianMixture(2).set_params(**{name: start}).fit(X)


def test_labels_go_back_to_a_frame_of_parquet_files(tmp_path: Path) -> None:
    # Dask joins partitions of which few columns are read: the answers had two chunks, the frame four.
    whole = pd.DataFrame(X, columns=["a", "b"]).assign(text="a long text that nobody reads", w=1.0 + LABELS)
    for part in range(4):
        whole[30 * part : 30 * part + 30].to_parquet(tmp_path / f"part.{part}.parquet")
    frame = dd.read_parquet(tmp_path)
    model = GaussianMixture(2, random_state=0).fit(frame[["a", "b"]], sample_weight=frame["w"])
    expected = GaussianMixture(2, random_state=0).fit(X, sample_weight=1.0 + LABELS)
    np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-9)
    labels = model.predict(frame[["a", "b"]])
    assert labels.npartitions == frame.npartitions == 4
    found = frame.assign(label=labels).compute()
    np.testing.assert_array_equal(found["label"], model.predict(whole[["a", "b"]]))
    turned = dd.from_pandas(whole["w"][::-1], npartitions=4, sort=False)
    with pytest.raises(DataError, match=r"row labels of block . of sample_weight are other than those of X"):
        GaussianMixture(2, random_state=0).fit(frame[["a", "b"]], sample_weight=turned)


def test_rows_in_another_order_are_told() -> None:
    frame = pd.DataFrame(X, columns=["a", "b"])
    shuffled = frame.sample(frac=1, random_state=0)
    weight = pd.Series(1.0 + LABELS)
    model = GaussianMixture(2, random_state=0)
    for refused in (model.fit, model.fit(frame).score):
        with pytest.raises(DataError, match=r"Give sample_weight\.loc\[X\.index\]"):
            refused(shuffled, sample_weight=weight)
    with pytest.raises(DataError, match=r"The row labels of labels_init are in another order"):
        GaussianMixture(2, labels_init=pd.Series(LABELS)).fit(shuffled)


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow", "dask"])
def test_variables_are_the_columns_that_are_taken(kind: str) -> None:
    frame = pd.DataFrame({"id": np.arange(N), "b": X[:, 1], "name": ["x"] * N, "a": X[:, 0]})
    made: dict[str, Callable[[], Any]] = {
        "pandas": lambda: frame,
        "polars": lambda: pl.from_pandas(frame),
        "arrow": lambda: pa.Table.from_pandas(frame),
        "dask": lambda: dd.from_pandas(frame, npartitions=2),
    }
    given = made[kind]()
    settings: dict[str, Any] = {"random_state": 0, "variables": ["a", "b"]}
    model = GaussianMixture(2, **settings).fit(given)
    assert model.feature_names_in_.tolist() == ["a", "b"]
    expected = GaussianMixture(2, random_state=0).fit(frame[["a", "b"]])
    np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-9)
    np.testing.assert_array_equal(model.predict(given), expected.predict(frame[["a", "b"]]))
    with pytest.raises(DataError, match=r"X has no columns \['c'\]: it has \['id', 'b', 'name', 'a'\]"):
        GaussianMixture(2, variables=["a", "c"]).fit(given)


def test_variables_name_the_columns_of_an_array_that_has_no_names() -> None:
    model = GaussianMixture(2, variables=["a", "b"]).fit(X)
    assert model.feature_names_in_.tolist() == ["a", "b"]
    with pytest.raises(DataError, match=r"X has no names: variables names 1 features, and it has 2"):
        GaussianMixture(2, variables=["a"]).fit(X)


@pytest.mark.parametrize("names", [[1, 2], ["a", "a"], [None, "a"]])
def test_names_that_no_file_holds_are_refused_before_the_fit(names: list[Any]) -> None:
    with pytest.raises(DataError, match=r"variables must name features by different strings, got "):
        GaussianMixture(2, variables=names).fit(X)
    with pytest.raises(DataError, match=r"feature_names must name features by different strings, got "):
        GaussianMixture.from_parameters([1.0], [[0.0, 1.0]], [np.eye(2)], feature_names=names)


def test_a_dataset_whose_variables_are_numbers_has_no_names(tmp_path: Path) -> None:
    sea = xr.Dataset({1: ("row", X[:, 1]), 0: ("row", X[:, 0])})
    model = GaussianMixture(2, random_state=0, variables=[0, 1]).fit(sea)
    model.save(tmp_path / "model.npz")
    assert not hasattr(GaussianMixture.load(tmp_path / "model.npz"), "feature_names_in_")
    np.testing.assert_array_equal(model.means_, GaussianMixture(2, random_state=0).fit(X).means_)
