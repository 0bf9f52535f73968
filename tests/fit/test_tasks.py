"""What tasks do to one block: rows of zero weight are never looked at, and what is no number is told."""

import pickle
from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from daskgmm.compute.block import Block
from daskgmm.compute.rows import as_rows
from daskgmm.compute.threads import Plain
from daskgmm.errors import DataError
from daskgmm.fit.run import EM
from daskgmm.fit.survey import Threshold
from daskgmm.fit.tasks import Conclude, Examine, Expect, Learn, Query, Rate, TakeFirst, Together, seen
from daskgmm.model.background import Contaminated
from daskgmm.model.mixture import ANSWERS
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import FULL
from daskgmm.model.update import Regularised
from tests.structures import draw_mixture

X = np.random.default_rng(0).normal(size=(100, 2))
WEIGHT = np.random.default_rng(1).choice([0.0, 0.5, 3.0], 100)
MIXTURE = draw_mixture("full", 2, 2)
TASKS: dict[str, Any] = {
    "expect": Expect(MIXTURE),
    "examine": Examine(FULL, 2, 0, Threshold(9)),
    "rate": Rate(MIXTURE, entropy=True),
    "first": TakeFirst(9),
    **{name: Query(MIXTURE, name, -1) for name in ANSWERS},
    "together": Together((EM(MIXTURE, Regularised(), 0.0, 1).task, Rate(MIXTURE))),
}


def values(found: Any) -> list[Any]:
    """All numbers in what a task found."""
    if isinstance(found, (int, float, np.ndarray)):
        return [found]
    parts = found if isinstance(found, tuple) else vars(found).values() if is_dataclass(found) else ()
    return [number for part in parts for number in values(part)]


def assert_same(a: Any, b: Any) -> None:
    pairs = zip(values(a), values(b), strict=True)
    assert all(np.array_equal(one, other, equal_nan=True) for one, other in pairs)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_of_zero_weight_are_never_looked_at(task: Any, bad: float) -> None:
    spoiled = np.where(WEIGHT[:, None] == 0, bad, X)
    found, expected = (task(Block(x, weight=WEIGHT)) for x in (spoiled, X))
    assert_same(found, expected)
    with pytest.raises(DataError, match=rf"contains {'NaN' if bad != bad else 'infinity'}: block 4, row\(s\) "):
        task(Block(spoiled, index=4))


def test_what_a_mini_batch_finds_is_no_number_where_a_row_is_none() -> None:
    """Its blocks are not those that a user knows: whoever adds it up asks the rows."""
    x = np.where(np.arange(100)[:, None] == 7, np.nan, X)
    statistics, _ = Learn(MIXTURE, 9, 0)(Block(x))
    assert not np.isfinite(statistics.log_likelihood)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize(("index", "first"), [(2, 100), (3, 41), (4, 0)])
def test_a_mini_batch_begins_after_a_place(index: int, first: int, weight: Any) -> None:
    statistics, sample = Learn(MIXTURE, 100, 0, (3, 40))(Block(X, index=index, weight=weight))
    rest = None if weight is None else weight[first:]
    expected: Statistics = MIXTURE.expectation(X[first:], rest)
    assert_same(statistics, expected)
    np.testing.assert_array_equal(sample.x, X[first:] if rest is None else X[first:][rest > 0])


def test_seen_copies_only_where_it_must() -> None:
    for block in (Block(X), Block(X, weight=np.ones(100))):
        assert seen(block) is block
    found = seen(Block(X, weight=WEIGHT, columns={"noise": X**2}))
    np.testing.assert_array_equal(found.x, X[WEIGHT > 0])
    np.testing.assert_array_equal(found.weight, WEIGHT[WEIGHT > 0])
    np.testing.assert_array_equal(found.columns["noise"], X[WEIGHT > 0] ** 2)


@pytest.mark.parametrize(
    ("answer", "missing"), [("labels", -1), ("responsibilities", np.nan), ("score_samples", np.nan)]
)
def test_omitted_rows_answer_missing(answer: str, missing: float) -> None:
    x = X.copy()
    x[[3, 50], 1] = np.nan
    found = Query(MIXTURE, answer, missing)(as_rows(x, nan_policy="omit").read(0))
    kept = np.delete(np.arange(100), [3, 50])
    np.testing.assert_array_equal(found[kept], getattr(MIXTURE, answer)(X[kept]))
    assert np.all(np.isnan(found[[3, 50]])) if np.isnan(missing) else np.all(found[[3, 50]] == missing)
    assert found.dtype == getattr(MIXTURE, answer)(X).dtype
    with pytest.raises(DataError, match=r"contains NaN: block 0, row\(s\) 3, 50"):
        Query(MIXTURE, answer, missing)(as_rows(x).read(0))


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_tasks_travel_between_processes(task: Any) -> None:
    block = Block(X, weight=WEIGHT)
    assert_same(pickle.loads(pickle.dumps(task))(block), task(block))


def test_tasks_together_find_what_each_would() -> None:
    tasks: tuple[Any, ...] = Expect(MIXTURE), Rate(MIXTURE), Learn(MIXTURE, 9, 0)
    rows = as_rows(X, weight=WEIGHT, block_size=30 * 24)
    together = Plain().reduce(rows, Together(tasks))
    for task, found in zip(tasks, together, strict=True):
        assert_same(found, Plain().reduce(rows, task))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("gone", [0.0, 0.3])
@pytest.mark.parametrize("noisy", [False, True])
def test_what_a_fit_ends_with_is_what_queries_rate_it(background: bool, gone: float, noisy: bool) -> None:
    random = np.random.default_rng(2)
    x = random.uniform(-20, 20, size=(100, 2)) if background else X.copy()
    x[random.random(100) < gone, 1] = np.nan
    parts = 0.7 * MIXTURE.weights, MIXTURE.means, MIXTURE.covariance
    mixture = Contaminated(*parts, np.full(2, -20.0), np.full(2, 20.0)) if background else MIXTURE
    columns = {"noise": random.gamma(1.0, 0.5, size=x.shape)} if noisy else {}
    block = Block(x, weight=WEIGHT, columns=columns, partial=gone > 0)
    for found, expected in zip(
        values(Conclude(mixture)(block)), values(Rate(mixture, entropy=True)(block)), strict=True
    ):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    known = np.where(np.arange(100) < 60, 0, -1)
    some = Conclude(mixture)(replace(block, columns={**columns, "known": known}))
    rest = Rate(mixture, entropy=True)(replace(block, weight=np.where(known < 0, WEIGHT, 0.0)))
    assert some.entropy == pytest.approx(rest.entropy, rel=1e-9, abs=1e-9)  # nothing is open of the others


def test_the_first_rows_are_those_of_positive_weight() -> None:
    rows = as_rows(X, weight=WEIGHT, block_size=30 * 24)
    found = Plain().reduce(rows, TakeFirst(50))
    first = np.flatnonzero(WEIGHT)[:50]
    np.testing.assert_array_equal(found.x, X[first])
    np.testing.assert_array_equal(found.weight, WEIGHT[first])
    size = rows.x.chunks[0]
    np.testing.assert_array_equal(found.places, np.column_stack([first // size, first % size]))


@pytest.mark.parametrize(
    ("x", "weight", "told"),
    [
        (X * 1e200, None, "too large for dtype.*block 0. Scale the data"),
        (X, np.full(100, 1e307), "too large to add up: block 0. Scale them"),
    ],
)
def test_sums_that_are_no_numbers_are_told(x: Any, weight: Any, told: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(DataError, match=told):
        Examine(FULL, 2, 0, Threshold(9))(Block(x, weight=weight))
