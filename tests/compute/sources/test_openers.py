"""A new kind of input is an opener in the table `OPENERS`, and no edit elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest

from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from daskgmm._typing import Array
from daskgmm.compute.sources import OPENERS
from daskgmm.compute.sources.base import Asked, Chunks, Source, even_chunks
from tests.compute.arrays import dask_array

X = np.random.default_rng(0).normal(size=(300, 2)) + 4 * (np.arange(300) % 2)[:, None]
WEIGHT = np.arange(300) % 3 + 0.5
CHUNK = 50


class Tape:
    """Rows of a library that nobody has heard of."""

    def __init__(self, values: Array) -> None:
        self.values = values


class LongTape(Tape):
    """A subclass of another library's, as users write them."""


Tape.__module__ = "tapes.reels"
LongTape.__module__ = "mylab"
ANY = Asked("X", fill_missing=False, ensure_2d=True)


def wind(values: Array, chunks: Chunks, index: int, _: None) -> Array:
    """The reader: a copy of some rows, as a file gives."""
    first = int(sum(chunks[:index]))
    return values[first : first + int(chunks[index])].copy()


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Reel(Source):
    """A source of its own."""

    tape: Tape
    keepable: ClassVar[bool] = True

    def plan(self, block_bytes: int) -> Chunks:
        return even_chunks(len(self.tape.values), block_bytes // self.row_bytes)

    @property
    def reader(self) -> Callable[[int, Any], Any]:
        return partial(wind, self.tape.values, self.chunks)


def as_source(value: Tape, asked: Asked) -> Source:
    values = value.values
    return Reel(shape=values.shape, dtype=values.dtype, chunks=(len(values),), tape=value)


def as_dask(value: Tape, asked: Asked) -> Any:
    """What the input holds, which is opened in turn."""
    return dask_array(value.values, chunks=(CHUNK, *value.values.shape[1:]))


def same(a: Any, b: Any) -> None:
    for name in ("weights_", "means_", "covariances_", "n_iter_", "n_passes_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# An opener, and what the library has known all along that should give the same.
OPENED: dict[str, tuple[Any, Callable[[Array], Any]]] = {
    "source": (as_source, lambda values: values),
    "dask": (as_dask, lambda values: as_dask(Tape(values), ANY)),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize("kind", [Tape, LongTape])
@pytest.mark.parametrize("estimator", [GaussianMixture, MiniBatchGaussianMixture])
def test_a_kind_of_input_is_entered_and_fitted(
    estimator: Any, kind: type[Tape], opened: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model() -> Any:
        return estimator(2, random_state=0, block_size=CHUNK * 16, max_iter=4, tol=0)

    opener, twin = OPENED[opened]
    monkeypatch.setitem(OPENERS, "tapes", opener)
    same(model().fit(kind(X)), model().fit(twin(X)))
    fitted = model().fit(kind(X), sample_weight=kind(WEIGHT))
    same(fitted, model().fit(twin(X), sample_weight=twin(WEIGHT)))
    assert fitted.score(kind(X), sample_weight=kind(WEIGHT)) == fitted.score(twin(X), sample_weight=twin(WEIGHT))
    np.testing.assert_array_equal(np.asarray(fitted.predict(kind(X))), fitted.predict(X))


def test_a_kind_that_nobody_entered_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match=r"Tape|Expected 2D array, got scalar"):
        GaussianMixture(2).fit(Tape(X))  # type: ignore[arg-type]
