"""Saving, loading, and going to and from scikit-learn and plain parameters."""

import io
import json
import os
import pickle
import re
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture as Theirs

import daskgmm
from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from daskgmm.errors import CheckpointError, ModelFileError
from daskgmm.store import files

KINDS = ["full", "tied", "diag", "spherical"]
FORMAT1 = Path(__file__).parents[1] / "data" / "format1"
X = np.random.default_rng(0).normal(size=(200, 3)) + 4 * (np.arange(200)[:, None] % 2)
FITTED = ["weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_", "converged_"]
FITTED += ["n_iter_", "lower_bound_", "lower_bounds_", "n_passes_", "n_features_in_"]
ONLINE = ["n_samples_seen_", "n_batches_seen_", "effective_sample_size_", "next_row_"]
DAMAGED = "is not a model that daskgmm saved, or it is damaged"


def fitted(kind: Any = "full", **settings: Any) -> Any:
    return GaussianMixture(2, covariance_type=kind, random_state=0, **settings).fit(X)


def learnt(kind: Any = "full", **settings: Any) -> MiniBatchGaussianMixture:
    model = MiniBatchGaussianMixture(2, covariance_type=kind, random_state=0, **settings)
    return model.partial_fit(X[:120]).partial_fit(X[120:])


def waiting(**settings: Any) -> MiniBatchGaussianMixture:
    return MiniBatchGaussianMixture(2, random_state=0, **settings).partial_fit(X[:20])


def assert_same_bits(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    for name in FITTED + ONLINE * hasattr(a, "partial_fit"):
        one, other = getattr(a, name), getattr(b, name)
        np.testing.assert_array_equal(one, other, err_msg=name)
        assert type(one) is type(other), name
    np.testing.assert_array_equal(a.score_samples(X), b.score_samples(X))
    np.testing.assert_array_equal(a.predict_proba(X), b.predict_proba(X))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("made", [fitted, learnt])
@pytest.mark.parametrize("by_class", [False, True])
def test_load_is_bit_for_bit(kind: str, made: Callable[..., Any], by_class: bool, tmp_path: Path) -> None:
    model = made(kind, tol=1e-5, block_size="1 MiB", reg_covar=1e-5)
    model.save(tmp_path / "m.npz")
    load = type(model).load if by_class else daskgmm.load
    again = load(tmp_path / "m.npz")
    assert_same_bits(model, again)
    assert again.get_params() == model.get_params()
    np.testing.assert_array_equal(again.sample(50)[0], model.sample(50)[0])
    again.save(str(tmp_path / "again.npz"))
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "m.npz").read_bytes()
    learn = "partial_fit" if made is learnt else "fit"  # on, or anew
    for one in (model, again):
        getattr(one, learn)(X[::-1])
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
    fitted(**settings).save(tmp_path / "m.npz")
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


@pytest.mark.parametrize("kind", [GaussianMixture, MiniBatchGaussianMixture])
def test_feature_names_are_kept(kind: Any, tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=["α", "b", "c"])
    model = kind(2, random_state=0).fit(frame)
    model.save(tmp_path / "m.npz")
    again = daskgmm.load(tmp_path / "m.npz")
    assert again.feature_names_in_.tolist() == ["α", "b", "c"]
    assert again.feature_names_in_.dtype == object
    np.testing.assert_array_equal(again.predict(frame), model.predict(frame))


@pytest.mark.parametrize("made", [fitted, learnt, waiting])
def test_the_file_is_plain(made: Callable[..., Any], tmp_path: Path) -> None:
    model = made()
    model.save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz", allow_pickle=False) as file:
        header = json.loads(str(file["header"]))
        assert all(file[name].dtype.kind in "fU" for name in file.files)
    assert (header["format"], header["version"], header["estimator"]) == ("daskgmm", 2, type(model).__name__)


def test_a_model_that_is_not_fitted_is_not_saved(tmp_path: Path) -> None:
    for model in (GaussianMixture(), MiniBatchGaussianMixture()):
        with pytest.raises(NotFittedError, match="not fitted"):
            model.save(tmp_path / "m.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "m.npz", fitted("diag")
    fitted().save(path)
    before = path.read_bytes()

    def fail(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="No space left"):
        other.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_path_is_taken_as_it_is(tmp_path: Path) -> None:
    fitted().save(tmp_path / "model")  # NumPy would append .npz
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    GaussianMixture.load(tmp_path / "model")


@pytest.mark.parametrize("load", [daskgmm.load, GaussianMixture.load])
def test_no_such_file(load: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.npz")


# Files that are not what they should be

FILES: dict[str, Callable[[Path], Any]] = {
    "batch": lambda path: fitted().save(path),
    "online": lambda path: learnt(init_size=30).save(path),
    "waiting": lambda path: waiting().save(path),
    "batch, format 1": lambda path: shutil.copy(FORMAT1 / "batch_full.npz", path),
    "online, format 1": lambda path: shutil.copy(FORMAT1 / "online_spherical.npz", path),
    "waiting, format 1": lambda path: shutil.copy(FORMAT1 / "waiting.npz", path),
}


@pytest.fixture(params=FILES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sound file of each kind."""
    path = tmp_path / "m.npz"
    FILES[request.param](path)
    daskgmm.load(path)
    return path


def taken_apart(path: Path) -> tuple[Any, dict[str, Any]]:
    """Header and arrays of a file."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(str(arrays.pop("header"))), arrays


def written(path: Path, header: Any, arrays: dict[str, Any]) -> None:
    """With digests that are right, so that the contents have to be looked at."""
    if "digest" in header:
        header = files.sealed({name: value for name, value in header.items() if name != "digest"}, arrays)
    np.savez(path, allow_pickle=True, **{"header": np.array(json.dumps(header)), **arrays})


def refused(path: Path, words: str = DAMAGED) -> None:
    with pytest.raises(ValueError, match=words):
        daskgmm.load(path)


def test_a_newer_version_is_refused(saved: Path) -> None:
    header, arrays = taken_apart(saved)
    written(saved, header | {"version": 99}, arrays)
    refused(saved, "has format version 99, this daskgmm reads up to 2. Update it.")


def test_another_estimator_is_refused(saved: Path) -> None:
    header, arrays = taken_apart(saved)
    own, other = GaussianMixture, MiniBatchGaussianMixture
    wrong: Any = own if header["estimator"] == other.__name__ else other
    with pytest.raises(ValueError, match=f"holds a {header['estimator']}, not a {wrong.__name__}"):
        wrong.load(saved)
    written(saved, header | {"estimator": "Mixture"}, arrays)
    refused(saved, "holds a Mixture, not a GaussianMixture or BayesianGaussianMixture or MiniBatchGaussianMixture")


def test_a_class_of_the_users_own_reads_what_it_wrote(tmp_path: Path) -> None:
    class Own(GaussianMixture):
        pass

    model = Own(2, random_state=0).fit(X)
    model.save(tmp_path / "own.npz")
    loaded = Own.load(tmp_path / "own.npz")
    assert type(loaded) is Own
    assert loaded.means_.tobytes() == model.means_.tobytes()
    with pytest.raises(ValueError, match="holds a Own, not a GaussianMixture"):
        GaussianMixture.load(tmp_path / "own.npz")


def test_a_header_that_lacks_an_entry_is_refused(saved: Path) -> None:
    header, arrays = taken_apart(saved)
    assert {"format", "version", "estimator"} < set(header)
    # The first is a part of the state, which not every model has; the second is made anew with the digest.
    for name in set(header) - {"online", "arrays"}:
        written(saved, {other: value for other, value in header.items() if other != name}, arrays)
        refused(saved)
    for name in ("settings", "fitted") if header["version"] == 2 else ():
        left = {other: value for other, value in header["value"]["dict"].items() if other != name}
        written(saved, header | {"value": {"dict": left}}, arrays)
        refused(saved)


def test_files_from_before_a_field_came_are_read(tmp_path: Path) -> None:
    """A sample of recent rows, for one: the model has none yet, and learns on."""
    path, new = tmp_path / "m.npz", ("recent", "looked")
    model = MiniBatchGaussianMixture(2, random_state=0).partial_fit(X).partial_fit(X)
    model.save(path)
    header, arrays = taken_apart(path)
    run = header["value"]["dict"]["fitted"]["parts"]["online"]["parts"]
    for name in new:
        del run[name]
    written(path, header, {name: array for name, array in arrays.items() if ".recent." not in name})
    loaded = MiniBatchGaussianMixture.load(path)
    assert (loaded.online_.recent, loaded.online_.looked) == (None, 0)
    np.testing.assert_array_equal(loaded.means_, model.means_)
    np.testing.assert_allclose(loaded.partial_fit(X).means_, model.partial_fit(X).means_, rtol=1e-12)
    del run["clock"]  # without a default
    written(path, header, {name: array for name, array in arrays.items() if ".recent." not in name})
    refused(path)


def test_a_missing_array_is_refused(saved: Path) -> None:
    header, arrays = taken_apart(saved)
    optional = () if header["version"] > 1 else ("_init", "anchor_covariances")
    needed = [name for name in arrays if not name.endswith(optional)]
    assert len(needed) > 1
    for name in needed:
        written(saved, header, {other: value for other, value in arrays.items() if other != name})
        refused(saved)


def test_arrays_that_disagree_in_shape_are_refused(saved: Path) -> None:
    header, arrays = taken_apart(saved)
    for name, value in arrays.items():
        if not name.endswith(("_init", "lower_bounds")):  # of any length, or checked by the next fit
            written(saved, header, arrays | {name: value[:-1]})
            refused(saved)


@pytest.mark.parametrize("name", ["batch", "online", "batch, format 1", "online, format 1"])
def test_kinds_that_are_not_known_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    FILES[name](path)
    header, arrays = taken_apart(path)
    for entry in ("structure", "value", "covariance_type")[slice(2, 3) if header["version"] == 1 else slice(2)]:
        text = re.sub(rf'"{entry}": "\w+"', f'"{entry}": "round"', json.dumps(header))
        assert "round" in text
        written(path, json.loads(text), arrays)
        refused(path)


def contents() -> dict[str, bytes]:
    array = io.BytesIO()
    np.save(array, np.arange(3))
    archives = {
        "other npz": {"x": np.arange(3)},
        "header of another kind": {"header": np.array(json.dumps([1, 2]))},
        "header that is no JSON": {"header": np.array("no json")},
    }
    found = {}
    for name, parts in archives.items():
        archive = io.BytesIO()
        np.savez(archive, allow_pickle=False, **parts)
        found[name] = archive.getvalue()
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    return found | {
        "empty": b"",
        "text": b"hello world, this is no model at all",
        "npy": array.getvalue(),
        "empty zip": empty.getvalue(),
        "pickle": pickle.dumps({"weights": np.ones(2)}),
    }


@pytest.mark.parametrize("name", contents())
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    path.write_bytes(contents()[name])
    refused(path)


class Trap:
    """Leaves a mark when unpickled."""

    sprung = False

    def __reduce__(self) -> Any:
        return setattr, (Trap, "sprung", True)


def test_no_pickle_is_ever_opened(saved: Path) -> None:
    header, arrays = taken_apart(saved)
    trap = np.empty(1, dtype=object)
    trap[0] = Trap()
    for name in arrays:
        written(saved, header, arrays | {name: trap})
        refused(saved)
    saved.write_bytes(pickle.dumps(Trap()))
    refused(saved)
    assert not Trap.sprung


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    refused(saved)


def test_a_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path, model = tmp_path / "m.npz", fitted()
    model.save(path)
    whole, count = path.read_bytes(), 0
    positions = np.random.default_rng(0).permutation(len(whole))[:400].tolist()
    for position in positions:
        spoilt = bytearray(whole)
        spoilt[position] ^= 0xFF
        path.write_bytes(bytes(spoilt))
        try:
            again = GaussianMixture.load(path)
        except ValueError:
            count += 1
        else:  # padding and time stamps carry nothing
            assert_same_bits(model, again)
    assert count > len(positions) / 2


Change = Callable[[Any, dict[str, Any]], Any]


def put(name: str, value: Any) -> Change:
    """Put an array in the place of the one of this name, or what a function makes of that."""
    return lambda header, arrays: arrays.update({name: value(arrays[name]) if callable(value) else value})


def told(value: Any, *path: str) -> Change:
    """Put a value in a place of the fitted state, or of the settings."""

    def change(header: Any, arrays: Any) -> None:
        place = header["value"]["dict"]
        for name in path[:-1]:
            place = place[name]
        assert path[-1] in place
        place[path[-1]] = value

    return change


FITTED_PARTS, SETTINGS = ("fitted", "parts"), ("settings", "dict")
COVARIANCE = (*FITTED_PARTS, "mixture", "parts", "covariance")
SCALED = np.array([1.0, 1 + 1e-9])[:, None, None]
# What `save` cannot have written of a mixture of two components of three features, under digests that are right.
UNSOUND: dict[str, Change] = {
    "a weight that is no number": put("value.fitted.mixture.weights", np.array([np.nan, 1])),
    "a negative weight": put("value.fitted.mixture.weights", np.array([-0.5, 1.5])),
    "weights of another sum": put("value.fitted.mixture.weights", np.array([0.5, 0.6])),
    "an infinite mean": put("value.fitted.mixture.means", lambda v: np.where(v == v.max(), np.inf, v)),
    "float32": put("value.fitted.mixture.means", lambda v: v.astype("f4")),
    "text": put("value.fitted.mixture.means", lambda v: v.astype(str)),
    "no component": put("value.fitted.mixture.means", lambda v: v[:0]),
    "a negative covariance": put("value.fitted.mixture.covariance.values", lambda v: -v),
    "a singular covariance": put("value.fitted.mixture.covariance.values", np.ones_like),
    "a factor of another covariance": put("value.fitted.mixture.covariance.factor", lambda v: v[::-1]),
    "a factor that is off by 1e-9": put("value.fitted.mixture.covariance.factor", lambda v: v * SCALED),
    "a lower factor": put("value.fitted.mixture.covariance.factor", lambda v: v.swapaxes(1, 2)),
    "another structure": told(
        {"structure": "diag"}, *FITTED_PARTS, "mixture", "parts", "covariance", "parts", "structure"
    ),
    "another form": told("Axes", *FITTED_PARTS, "mixture", "parts", "covariance", "value"),
    "text for a count": told("3", *FITTED_PARTS, "n_iter"),
    "a bool for a count": told(True, *FITTED_PARTS, "n_iter"),
    "a number for a bool": told(1, *FITTED_PARTS, "converged"),
    "a negative count": told(-1, *FITTED_PARTS, "n_passes"),
    "a name too few": told({"tuple": ["a", "b"]}, *FITTED_PARTS, "feature_names"),
    "names that are numbers": told({"tuple": [1, 2, 3]}, *FITTED_PARTS, "feature_names"),
    "names that are an array": told({"floats": "value.fitted.mixture.weights"}, *FITTED_PARTS, "feature_names"),
    "a part that is not there": told({"array": "value.nothing"}, *FITTED_PARTS, "lower_bounds"),
    "an array that is there twice": told({"array": "value.fitted.mixture.means"}, *FITTED_PARTS, "lower_bound"),
    "another number of components": told(3, *SETTINGS, "n_components"),
    "no components": told(0, *SETTINGS, "n_components"),
    "a covariance_type of no fit": told("round", *SETTINGS, "covariance_type"),
    "a negative tolerance": told(-1.0, *SETTINGS, "tol"),
    "a size that is none": told("much", *SETTINGS, "block_size"),
    "labels that are a tuple": told({"tuple": []}, *SETTINGS, "labels_init"),
    "a trace of two axes": put("value.fitted.lower_bounds", lambda v: np.empty((10**9, 0))),
    "labels that are a number": told(5, *SETTINGS, "labels_init"),
    "a start of another shape": told({"array": "value.fitted.mixture.weights"}, *SETTINGS, "means_init"),
    "more": lambda header, arrays: arrays.update(more=np.zeros(3)),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_what_save_cannot_have_written_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    fitted().save(path)
    header, arrays = taken_apart(path)
    written(path, header, arrays)
    daskgmm.load(path)
    UNSOUND[name](header, arrays)
    written(path, header, arrays)
    with pytest.raises(ModelFileError, match=f"{re.escape(str(path))} {DAMAGED}. Take another copy"):
        daskgmm.load(path)


def test_a_changed_digest_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    fitted().save(path)
    header, arrays = taken_apart(path)
    name = "value.fitted.mixture.means"
    for change in ({"digest": "0" * 64}, {"estimator": "MiniBatchGaussianMixture"}):
        np.savez(path, **{"header": np.array(json.dumps(header | change)), **arrays})
        refused(path)
    np.savez(path, **{"header": np.array(json.dumps(header)), **arrays, name: arrays[name] + 1e-12})
    refused(path)


@pytest.mark.parametrize("condition", [1e2, 1e8, 1e13, 1e15])
@pytest.mark.parametrize("kind", KINDS)
def test_ill_conditioned_models_are_read(kind: Any, condition: float, tmp_path: Path) -> None:
    d, random = 8, np.random.default_rng(0)
    rotation = np.linalg.qr(random.normal(size=(d, d)))[0]
    matrix = (rotation * np.geomspace(1, 1 / condition, d)) @ rotation.T * 1e6
    matrix = (matrix + matrix.T) / 2
    values = {
        "full": [matrix, np.eye(d)],
        "tied": matrix,
        "diag": [np.diag(matrix)] * 2,
        "spherical": [1e-12, 1e12],
    }
    made = GaussianMixture.from_parameters([0.5, 0.5], np.zeros((2, d)), values[kind], kind)
    made.save(tmp_path / "m.npz")
    again = daskgmm.load(tmp_path / "m.npz")
    assert again.precisions_cholesky_.tobytes() == made.precisions_cholesky_.tobytes()
    started = GaussianMixture(
        2, covariance_type=kind, means_init=np.zeros((2, d)), precisions_init=made.precisions_, max_iter=0
    )
    started.fit(random.normal(size=(50, d))).save(tmp_path / "m.npz")
    daskgmm.load(tmp_path / "m.npz")


def test_a_model_with_other_settings_than_its_fit_is_not_saved(tmp_path: Path) -> None:
    for change in (
        {"n_components": 3},
        {"covariance_type": "diag"},
        {"max_iter": -1},
        {"means_init": np.zeros((1, 3))},
    ):
        with pytest.raises(ValueError, match=next(iter(change)).removesuffix("_init")):
            fitted().set_params(**change).save(tmp_path / "m.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_said_to_be_one(tmp_path: Path) -> None:
    fitted(checkpoint=tmp_path / "c")
    with pytest.raises(ModelFileError, match="is a checkpoint, not a model: end its fit"):
        daskgmm.load(tmp_path / "c")


@pytest.mark.timeout(20)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files")
def test_nothing_but_files_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        refused(Path(place))
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            GaussianMixture(checkpoint=place).fit(X)
    with pytest.raises(IsADirectoryError):
        daskgmm.load(tmp_path)


def test_little_is_read_of_a_large_file_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen, read = tmp_path / "large", [], files._Sips.read

    def counted(sips: Any, n: int = -1) -> Any:
        seen.append(len(found := read(sips, n)))
        return found

    monkeypatch.setattr(files._Sips, "read", counted)
    with path.open("wb") as file:
        file.truncate(5 * 2**30)
    refused(path)
    fitted().save(tmp_path / "m.npz")
    header, _ = taken_apart(tmp_path / "m.npz")
    with zipfile.ZipFile(path, "w") as archive, archive.open("header.npy", "w") as member:
        np.save(member, np.array(json.dumps(header | {"format": "other"})))
    with zipfile.ZipFile(path, "a") as archive, archive.open("x.npy", "w", force_zip64=True) as member:
        for _ in range(64):
            member.write(bytes(2**20))
    refused(path)
    assert 0 < sum(seen) < 2**18


def test_a_bomb_takes_no_more_than_its_file(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    fitted().save(path)
    header, arrays = taken_apart(path)
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<f8", "fortran_order": False, "shape": (2**33,)})
    for content, how in ((bytes(2**28), zipfile.ZIP_DEFLATED), (huge.getvalue(), zipfile.ZIP_STORED)):
        written(path, header, arrays)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("more.npy", content, how, 1)
        tracemalloc.start()
        refused(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**21


def test_a_url_holds_a_model() -> None:
    model = fitted()
    model.save("memory://models/m.npz")
    assert_same_bits(daskgmm.load("memory://models/m.npz"), model)
    with pytest.raises(ModelFileError, match=r"nosuch://m\.npz cannot be reached"):
        daskgmm.load("nosuch://m.npz")


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


@pytest.mark.parametrize("estimator", [GaussianMixture, MiniBatchGaussianMixture])
def test_from_parameters_with_names(estimator: Any, tmp_path: Path) -> None:
    own, names = parameters("full"), ["α", "b", "c"]
    assert not hasattr(estimator.from_parameters(**own), "feature_names_in_")
    model = estimator.from_parameters(**own, feature_names=names)
    assert model.feature_names_in_.tolist() == names
    assert model.feature_names_in_.dtype == object
    frame = pd.DataFrame(X, columns=names)
    np.testing.assert_array_equal(model.predict(frame), estimator.from_parameters(**own).predict(X))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[["b", "α", "c"]])
    model.save(tmp_path / "m.npz")
    assert daskgmm.load(tmp_path / "m.npz").feature_names_in_.tolist() == names


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d"]])
def test_names_are_one_for_each_feature(names: list[str]) -> None:
    with pytest.raises(ValueError, match="feature_names"):
        GaussianMixture.from_parameters(**parameters("full"), feature_names=names)


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
