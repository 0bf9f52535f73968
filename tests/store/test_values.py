"""What is stored: every class that may be comes back bit for bit, and a new field of one needs nothing else."""

import json
import os
import stat
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from daskgmm import (
    BayesianGaussianMixture,
    GaussianMixture,
    GaussianMixtureSearch,
    MiniBatchGaussianMixture,
    NormalInverseWishart,
    load,
    watching,
)
from daskgmm.errors import CollapseError, DataError
from daskgmm.estimators.persistence import read
from daskgmm.fit.run import EM
from daskgmm.fit.state import State
from daskgmm.model.structure import Structure
from daskgmm.model.update import Regularised
from daskgmm.store import files, values
from daskgmm.store.values import TYPES, digest, pack, storable, unpack
from tests.listeners import Heard
from tests.structures import KINDS, draw_mixture

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization", "ignore:The best candidate")

X = np.random.default_rng(0).normal(size=(600, 2)) + 4.0 * (np.arange(600)[:, None] >= 300)


def there_and_back(value: Any) -> Any:
    """Through JSON and arrays, as a file has them."""
    arrays: dict[str, Any] = {}
    packed = json.loads(json.dumps(pack(value, arrays, "value")))
    return unpack(packed, arrays)


def assert_same(a: Any, b: Any) -> None:
    """Of one type, with the same fields, down to every bit."""
    assert type(a) is type(b)
    if isinstance(a, Structure):
        assert a is b
    elif is_dataclass(a):
        for f in fields(a):
            assert_same(getattr(a, f.name), getattr(b, f.name))
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert_same([*a.values()], [*b.values()])
    elif isinstance(a, DataError):
        assert (a.args, vars(a)) == (b.args, vars(b))
    elif isinstance(a, float):
        assert np.float64(a).tobytes() == np.float64(b).tobytes()
    else:
        assert a == b


def parts_of(value: Any) -> list[Any]:
    """A value, and all dataclasses in it."""
    inner: list[Any] = []
    if isinstance(value, Structure):
        return []
    if is_dataclass(value):
        inner = [getattr(value, f.name) for f in fields(value)]
    elif isinstance(value, (tuple, dict)):
        inner = list(value.values() if isinstance(value, dict) else value)
    return [value, *(part for each in inner for part in parts_of(each))]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What fits of all kinds write and save, by class: found in their states, not listed here."""
    heard = Heard()
    with watching(heard):
        for kind in KINDS:
            for prior in (None, "weak"):
                GaussianMixture(3, covariance_type=kind, random_state=0, max_iter=2, tol=0.0, prior=prior).fit(X)
            BayesianGaussianMixture(3, covariance_type=kind, random_state=0, max_iter=2, tol=0.0).fit(X)
        GaussianMixture(3, covariance_type="factors", n_factors=1, random_state=0, max_iter=2, tol=0.0).fit(X)
        GaussianMixture(3, random_state=0, max_iter=4, tol=0.0, acceleration="lbfgs").fit(X)
        GaussianMixtureSearch([1, 2], criterion="held_out", random_state=0, tol=0.0, max_iter=2).fit(X)
        rigid = GaussianMixture(2, frozen="weights", weights_init=[0.4, 0.6], background=True, random_state=0)
        rigid.set_params(max_iter=2, tol=0.0).fit(X, known=np.arange(600) % 3 - 1)
    stream = MiniBatchGaussianMixture(2, batch_size=50, random_state=0, max_iter=2, tol=0.0)
    started = MiniBatchGaussianMixture.from_parameters([0.5, 0.5], [[0.0, 0], [4, 4]], [[1.0, 1], [1, 1]], "diag")
    few = MiniBatchGaussianMixture(3, random_state=0)
    with watching(heard):
        stream.fit(X)
        few.partial_fit(X[:9])
    path = tmp_path_factory.mktemp("models") / "m.npz"
    states: list[Any] = [*heard.states]
    for model in (stream, started, few):
        model.save(path)
        states.append(read(path)[-1])
    failed = EM(draw_mixture("full"), Regularised(), 0.0, 9, (1.0,), failure=CollapseError("component 1", 1))
    found: dict[str, list[Any]] = {}
    for part in parts_of((*states, failed, NormalInverseWishart(mean=[1.0, 2.0]), rigid.expectation(X))):
        if is_dataclass(part):
            found.setdefault(type(part).__name__, []).append(part)
    return found


@pytest.mark.parametrize("name", sorted(TYPES))
def test_every_class_comes_back_bit_for_bit(name: str, stored: dict[str, list[Any]]) -> None:
    assert stored.get(name), f"no fit here writes a {name}"
    for value in stored[name]:
        again = there_and_back(value)
        assert_same(again, value)
        assert digest(again) == digest(value)


@pytest.mark.parametrize("name", sorted(TYPES))
def test_a_digest_sees_every_field(name: str, stored: dict[str, list[Any]]) -> None:
    """So a checkpoint tells values apart that differ anywhere."""
    value = stored[name][-1]
    for f in (f for f in fields(value) if f.init):
        other: Any = object.__new__(TYPES[name])
        vars(other).update(vars(value) | {f.name: "something else"})
        assert digest(other) != digest(value)


def test_a_new_field_needs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "TYPES", TYPES | {})

    @storable
    @dataclass(frozen=True, eq=False)
    class Longer(EM):
        patience: tuple[int, ...] = (3, 4)

    run = Longer(draw_mixture("tied"), Regularised(), 0.0, 9, patience=(5,))
    back = there_and_back(State(np.random.RandomState(0).get_state(legacy=False), runs=(run,))).runs[0]
    assert isinstance(back, Longer)
    assert back.patience == (5,)
    assert_same(back, run)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
numbers = st.sampled_from(["<f8", "<f4", ">f8", "<i8", "u1", "?", "<U3"])
shapes = arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
anything = st.recursive(
    plain | numbers.flatmap(lambda dtype: arrays_of.arrays(dtype, shapes)),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(anything)
def test_plain_values_and_arrays_come_back(value: Any) -> None:
    assert_same(there_and_back(value), value)


@given(anything)
def test_files_hold_what_they_were_given(value: Any) -> None:
    place = "memory://values/one"
    files.save(place, {"format": "test"}, value)
    header, arrays = files.read(place, lambda header: True)
    assert header["format"] == "test"
    assert_same(files.value_of(header, arrays), value)


def test_an_alias_with_arguments_stands_for_its_class() -> None:
    # As `type NDArray[T] = ndarray[...]` of NumPy 2.5, which Python 3.11 cannot say.
    alias = SimpleNamespace(__value__=np.ndarray[Any, Any])
    found = unpack({"array": "a"}, {"a": np.ones(2)}, alias)
    assert found.tolist() == [1.0, 1.0]
    with pytest.raises(TypeError, match="str stands where"):
        unpack("a", {}, alias)


@pytest.mark.parametrize("kind", KINDS)
def test_structures_are_named_not_copied(kind: str) -> None:
    mixture = draw_mixture(kind)
    assert there_and_back(mixture).covariance.structure is mixture.covariance.structure


UNWRITABLE = [print, object(), [1, 2], {1, 2}, ValueError("no"), np.random.RandomState(0), 1j]


@pytest.mark.parametrize("value", UNWRITABLE)
def test_what_cannot_be_written_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be written"):
        pack({"deep": (value,)}, {}, "value")


def test_a_class_that_was_not_entered_is_refused_and_never_built() -> None:
    @dataclass
    class Stranger:
        x: int = 0

    with pytest.raises(TypeError, match="Stranger cannot be written"):
        pack(Stranger(), {}, "value")
    with pytest.raises(KeyError, match="Stranger"):
        unpack({"value": "Stranger", "parts": {}}, {})


# Files, whole or absent


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def savez(file: Any, **_: Any) -> None:
        file.write(b"half of it")
        raise OSError("the disk is gone")

    monkeypatch.setattr(np, "savez", savez)


@pytest.mark.parametrize("before", [None, b"as it was"])
def test_a_file_is_whole_or_as_it_was(
    before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "c"
    if before is not None:
        place.write_bytes(before)
    broken(monkeypatch)
    with pytest.raises(OSError, match="disk is gone"):
        files.save(place, {}, (1.0,))
    expected = {} if before is None else {"c": before}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == expected


def test_no_file_holds_a_pickle(tmp_path: Path) -> None:
    """One that was crafted would run code as it is read."""
    place = tmp_path / "c"
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        files.save(place, {}, (np.array([print], dtype=object),))
    np.savez(tmp_path / "model.npz", header=np.array([{"format": "daskgmm"}], dtype=object))
    with pytest.raises(files.Damaged, match="not of the size that it says"):
        files.read(tmp_path / "model.npz", lambda header: False)
    with pytest.raises(ValueError, match="not a model"):
        load(tmp_path / "model.npz")


def test_values_are_frozen(stored: dict[str, list[Any]]) -> None:
    for found in stored.values():
        value = found[-1]
        first = fields(value)[0].name
        with pytest.raises(AttributeError, match="cannot assign"):
            setattr(value, first, None)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    replace = os.replace

    def named(old: str, new: str) -> None:
        done.append("named")
        replace(old, new)

    monkeypatch.setattr(os, "replace", named)
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(stat.filemode(os.fstat(handle).st_mode)[0]))
    files.save(tmp_path / "model.npz", {}, 1.0)
    assert done == ["-", "named", "d"]
