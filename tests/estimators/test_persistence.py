"""Saving, loading, and going to and from scikit-learn and plain parameters."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture as Theirs

from daskgmm import GaussianMixture
from daskgmm.estimators import persistence

KINDS = ["full", "tied", "diag", "spherical"]
X = np.random.default_rng(0).normal(size=(200, 3)) + 4 * (np.arange(200)[:, None] % 2)
FITTED = [
    "weights_",
    "means_",
    "covariances_",
    "precisions_",
    "precisions_cholesky_",
    "converged_",
    "n_iter_",
    "lower_bound_",
    "lower_bounds_",
    "n_passes_",
    "n_features_in_",
]


def fitted(kind: str = "full", **settings: Any) -> GaussianMixture:
    return GaussianMixture(2, covariance_type=kind, random_state=0, **settings).fit(X)


def assert_same_bits(a: Any, b: Any, names: Any = FITTED) -> None:
    for name in names:
        one, other = getattr(a, name), getattr(b, name)
        np.testing.assert_array_equal(one, other, err_msg=name)
        assert type(one) is type(other), name
    np.testing.assert_array_equal(a.score_samples(X), b.score_samples(X))
    np.testing.assert_array_equal(a.predict_proba(X), b.predict_proba(X))


@pytest.mark.parametrize("kind", KINDS)
def test_load_is_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = fitted(kind, tol=1e-5, block_size="1 MiB", reg_covar=1e-5)
    model.save(tmp_path / "m.npz")
    again = GaussianMixture.load(tmp_path / "m.npz")
    assert_same_bits(model, again)
    assert again.get_params() == model.get_params()
    np.testing.assert_array_equal(again.sample(50)[0], model.sample(50)[0])
    again.save(str(tmp_path / "again.npz"))
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "m.npz").read_bytes()
    again.fit(X)
    assert_same_bits(model, again)


def test_settings_of_every_plain_kind_are_kept(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "tol": np.float64(1e-4),
        "max_iter": np.int64(7),
        "n_init": 2,
        "init_params": "k-means++",
        "warm_start": np.bool_(True),
        "block_size": 4096,
        "nan_policy": "omit",
        "missing_chunks": "fill",
        "verbose_interval": 3,
        "weights_init": [0.25, 0.75],
        "means_init": X[:2],
        "precisions_init": np.stack([np.eye(3)] * 2),
    }
    model = fitted(**settings)
    model.save(tmp_path / "m.npz")
    again = GaussianMixture.load(tmp_path / "m.npz")
    for name, value in settings.items():
        np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)


def test_what_is_not_plain_is_left_at_its_default(tmp_path: Path) -> None:
    model = GaussianMixture(2, random_state=np.random.RandomState(0), labels_init=np.arange(200) % 2)
    model.fit(X).save(tmp_path / "m.npz")
    again = GaussianMixture.load(tmp_path / "m.npz")
    assert again.random_state is None
    assert again.labels_init is None
    assert_same_bits(model, again)


def test_feature_names_are_kept(tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=["α", "b", "c"])
    model = GaussianMixture(2, random_state=0).fit(frame)
    model.save(tmp_path / "m.npz")
    again = GaussianMixture.load(tmp_path / "m.npz")
    assert again.feature_names_in_.tolist() == ["α", "b", "c"]
    assert again.feature_names_in_.dtype == object
    np.testing.assert_array_equal(again.predict(frame), model.predict(frame))


def test_the_file_is_plain(tmp_path: Path) -> None:
    fitted().save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz", allow_pickle=False) as file:
        header = json.loads(str(file["header"]))
        assert all(file[name].dtype.kind in "fU" for name in file.files)
    assert (header["format"], header["version"], header["estimator"]) == ("daskgmm", 1, "GaussianMixture")
    assert header["settings"]["n_components"] == 2


def test_a_model_that_is_not_fitted_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises((NotFittedError, AttributeError), match="not fitted"):
        GaussianMixture().save(tmp_path / "m.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.npz"
    fitted().save(path)
    before = path.read_bytes()

    def fail(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(persistence.np, "savez", fail)
    with pytest.raises(OSError, match="No space left"):
        fitted("diag").save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_path_is_taken_as_it_is(tmp_path: Path) -> None:
    fitted().save(tmp_path / "model")  # NumPy would append .npz
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    GaussianMixture.load(tmp_path / "model")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        GaussianMixture.load(tmp_path / "none.npz")


# Files that are not what they should be


def rewritten(path: Path, change: Any) -> Path:
    """The saved model, with its arrays changed by ``change(header, arrays)``."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(str(arrays.pop("header")))
    change(header, arrays)
    np.savez(path, header=np.array(json.dumps(header)), **arrays)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    fitted().save(tmp_path / "m.npz")
    return tmp_path / "m.npz"


def test_a_newer_version_is_refused(saved: Path) -> None:
    rewritten(saved, lambda header, arrays: header.update(version=99))
    with pytest.raises(ValueError, match="has format version 99, this daskgmm reads up to 1"):
        GaussianMixture.load(saved)


def test_another_estimator_is_refused(saved: Path) -> None:
    rewritten(saved, lambda header, arrays: header.update(estimator="MiniBatchGaussianMixture"))
    with pytest.raises(ValueError, match="holds a MiniBatchGaussianMixture, not a GaussianMixture"):
        GaussianMixture.load(saved)


@pytest.mark.parametrize("name", ["format", "version", "estimator", "covariance_type", "settings", "n_iter"])
def test_a_header_that_lacks_an_entry_is_refused(saved: Path, name: str) -> None:
    rewritten(saved, lambda header, arrays: header.pop(name))
    with pytest.raises(ValueError, match="is not a model that daskgmm saved"):
        GaussianMixture.load(saved)


@pytest.mark.parametrize("name", ["weights", "means", "covariances", "precisions_cholesky", "lower_bounds"])
def test_a_missing_array_is_refused(saved: Path, name: str) -> None:
    rewritten(saved, lambda header, arrays: arrays.pop(name))
    with pytest.raises(ValueError, match="is not a model that daskgmm saved"):
        GaussianMixture.load(saved)


def test_an_unknown_covariance_type_is_refused(saved: Path) -> None:
    rewritten(saved, lambda header, arrays: header.update(covariance_type="round"))
    with pytest.raises(ValueError, match="is not a model that daskgmm saved"):
        GaussianMixture.load(saved)


def contents() -> dict[str, bytes]:
    array = io.BytesIO()
    np.save(array, np.arange(3))
    other = io.BytesIO()
    np.savez(other, x=np.arange(3))
    wrong = io.BytesIO()
    np.savez(wrong, header=np.array(json.dumps([1, 2])))
    text = io.BytesIO()
    np.savez(text, header=np.array("no json"))
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w"):
        pass
    return {
        "empty": b"",
        "text": b"hello world, this is no model at all",
        "npy": array.getvalue(),
        "other npz": other.getvalue(),
        "header of another kind": wrong.getvalue(),
        "header that is no JSON": text.getvalue(),
        "empty zip": empty.getvalue(),
        "pickle": pickle.dumps({"weights": np.ones(2)}),
    }


@pytest.mark.parametrize("name", contents())
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    path.write_bytes(contents()[name])
    with pytest.raises(ValueError, match="is not a model that daskgmm saved"):
        GaussianMixture.load(path)


class Trap:
    """Leaves a mark when unpickled."""

    sprung = False

    def __reduce__(self) -> Any:
        return setattr, (Trap, "sprung", True)


def test_no_pickle_is_ever_opened(saved: Path) -> None:
    with np.load(saved, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    trap = np.empty(1, dtype=object)
    trap[0] = Trap()
    np.savez(saved, allow_pickle=True, **(arrays | {"means": trap}))
    with pytest.raises(ValueError, match="is not a model that daskgmm saved"):
        GaussianMixture.load(saved)
    saved.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is not a model that daskgmm saved"):
        GaussianMixture.load(saved)
    assert not Trap.sprung


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="is not a model that daskgmm saved"):
        GaussianMixture.load(saved)


def test_a_flipped_byte_is_noticed_or_harmless(saved: Path) -> None:
    whole, model = saved.read_bytes(), GaussianMixture.load(saved)
    refused = 0
    positions = np.random.default_rng(0).permutation(len(whole))[:400].tolist()
    for position in positions:
        spoilt = bytearray(whole)
        spoilt[position] ^= 0xFF
        saved.write_bytes(bytes(spoilt))
        try:
            again = GaussianMixture.load(saved)
        except ValueError:
            refused += 1
        else:  # padding and time stamps carry nothing
            assert_same_bits(model, again)
    assert refused > len(positions) / 2


# scikit-learn


@pytest.mark.parametrize("kind", KINDS)
def test_to_scikit_learn(kind: str) -> None:
    model = fitted(kind, n_init=2, tol=1e-4)
    theirs = model.to_sklearn()
    assert type(theirs) is Theirs
    names = [name for name in FITTED if name != "n_passes_"]
    for name in names:
        np.testing.assert_array_equal(getattr(theirs, name), getattr(model, name), err_msg=name)
    # Log-densities of up to a hundred; scikit-learn expands no square for these small means.
    np.testing.assert_allclose(theirs.score_samples(X), model.score_samples(X), rtol=1e-11)
    np.testing.assert_array_equal(theirs.predict(X), model.predict(X))
    np.testing.assert_allclose(theirs.bic(X), model.bic(X), rtol=1e-12)
    assert (theirs.n_init, theirs.tol, theirs.init_params) == (2, 1e-4, "kmeans")
    theirs.sample(5)
    theirs.fit(X)  # its settings are ones that scikit-learn accepts
    theirs.means_[:] = 0  # a copy
    assert not np.any(model.means_ == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_from_scikit_learn(kind: str) -> None:
    theirs = Theirs(2, covariance_type=kind, random_state=0, tol=1e-4, init_params="k-means++").fit(X)
    model = GaussianMixture.from_sklearn(theirs)
    for name in FITTED:
        if name.startswith("precisions"):
            np.testing.assert_allclose(getattr(model, name), getattr(theirs, name), rtol=1e-10, atol=1e-12)
        elif name != "n_passes_":
            np.testing.assert_array_equal(getattr(model, name), getattr(theirs, name), err_msg=name)
    assert model.n_passes_ == 0
    assert (model.tol, model.init_params, model.covariance_type) == (1e-4, "k-means++", kind)
    np.testing.assert_allclose(model.score_samples(X), theirs.score_samples(X), rtol=1e-11)
    before = model.means_.copy()
    theirs.means_[:] = 0
    np.testing.assert_array_equal(model.means_, before)
    model.set_params(warm_start=True).fit(X)
    assert model.n_passes_ == model.n_iter_


def test_scikit_learn_there_and_back() -> None:
    frame = pd.DataFrame(X, columns=list("abc"))
    model = GaussianMixture(2, random_state=0).fit(frame)
    theirs = model.to_sklearn()
    assert theirs.feature_names_in_.tolist() == list("abc")
    again = GaussianMixture.from_sklearn(theirs)
    assert again.feature_names_in_.tolist() == list("abc")
    np.testing.assert_allclose(again.score_samples(frame), model.score_samples(frame), rtol=1e-12)


def test_scikit_learn_needs_a_fit() -> None:
    with pytest.raises((NotFittedError, AttributeError)):
        GaussianMixture().to_sklearn()
    with pytest.raises((NotFittedError, AttributeError)):
        GaussianMixture.from_sklearn(Theirs())


# Parameters


def parameters(kind: str) -> dict[str, Any]:
    model = fitted(kind)
    return {"weights": model.weights_, "means": model.means_, "covariances": model.covariances_}


@pytest.mark.parametrize("kind", KINDS)
def test_from_parameters(kind: str) -> None:
    model = fitted(kind)
    again = GaussianMixture.from_parameters(**parameters(kind), covariance_type=kind)
    np.testing.assert_array_equal(again.means_, model.means_)
    np.testing.assert_array_equal(again.covariances_, model.covariances_)
    np.testing.assert_allclose(again.score_samples(X), model.score_samples(X), rtol=1e-13)
    assert (again.n_components, again.covariance_type, again.n_iter_) == (2, kind, 0)
    assert again.sample(10)[0].shape == (10, 3)
    lists = {name: value.tolist() for name, value in parameters(kind).items()}
    same = GaussianMixture.from_parameters(**lists, covariance_type=kind)
    np.testing.assert_array_equal(same.score_samples(X), again.score_samples(X))


def test_parameters_are_copied() -> None:
    own = {name: value.copy() for name, value in parameters("full").items()}
    model = GaussianMixture.from_parameters(**own)
    before = model.score_samples(X)
    for value in own.values():
        value[...] = 7.0
    np.testing.assert_array_equal(GaussianMixture.from_parameters(**parameters("full")).means_, model.means_)
    np.testing.assert_array_equal(model.score_samples(X), before)


def test_rounded_weights_are_good_enough_to_sample() -> None:
    # What a table with seven digits, or float32, gives: within the tolerance that is accepted.
    weights = np.array([0.5000004, 0.5000004, 0.0])
    model = GaussianMixture.from_parameters(weights, np.arange(3.0)[:, None], np.ones((3, 1, 1)))
    x, y = model.sample(1000)
    assert x.shape == (1000, 1)
    assert set(y) <= {0, 1}
    np.testing.assert_allclose(model.predict_proba(x).sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": [0.5, 0.6]}, "'weights' should be normalized"),
        ({"weights": [1.5, -0.5]}, r"'weights' should be in the range \[0, 1\]"),
        ({"weights": [0.5, 0.25, 0.25]}, r"'weights' should have the shape of \(2,\)"),
        ({"weights": [np.nan, 1.0]}, "contains NaN"),
        ({"means": np.zeros(3)}, "Expected 2D array"),
        ({"means": np.zeros((2, 4))}, "'covariances' should have the shape"),
        (
            {"covariances": np.stack([np.eye(3), -np.eye(3)])},
            "'full covariances' should be symmetric.*component 1",
        ),
        ({"covariances": np.triu(np.ones((2, 3, 3)))}, "'full covariances' should be symmetric"),
        ({"covariances": np.ones((2, 3))}, "should have the shape"),
        ({"covariance_type": "round"}, "covariance_type"),
        ({"covariance_type": "diag", "covariances": np.zeros((2, 3))}, "'diag covariances' should be positive"),
    ],
)
def test_bad_parameters_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GaussianMixture.from_parameters(**(parameters("full") | change))
