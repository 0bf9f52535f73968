"""The survey: moments, and a row sample that depends on nothing but rows, weights and seed."""

import pickle
from functools import partial, reduce
from operator import add
from typing import Any

import dask.array as da
import dask.threaded
import numpy as np
import pytest
from dask.local import get_sync
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from daskgmm.compute.block import Block
from daskgmm.compute.rows import as_rows
from daskgmm.compute.threads import Threads
from daskgmm.errors import DataError
from daskgmm.fit import survey as module
from daskgmm.fit.survey import RowSample, Survey, Threshold, uniforms
from daskgmm.fit.tasks import Examine
from daskgmm.model.structure import DIAGONAL, STRUCTURES
from tests.strategies import chunkings, parts
from tests.structures import KINDS, covariances

D = 3


def draw_rows(seed: int, n: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, D)), random.choice([0.0, 0.1, 1.0, 9.0], size=n)


def examine(size: int = 20, seed: int = 0, kind: str = "full") -> Examine:
    return Examine(STRUCTURES[kind], 2, seed, Threshold(size))


def survey(
    x: Any, weight: Any = None, size: int = 20, seed: int = 0, kind: str = "full", **options: Any
) -> Survey:
    """The survey of any input, through an engine."""
    engine = Threads(get=options.pop("get", get_sync), span=options.pop("span", 1))
    return engine.reduce(as_rows(x, weight=weight, **options), examine(size, seed, kind))


def sampled(sample: RowSample) -> list[Any]:
    """All of a sample, in the order of the data."""
    order = np.argsort(sample.position)
    return [sample.position[order], sample.keys[order], sample.rows[order], sample.weight[order]]


def assert_same(a: RowSample, b: RowSample) -> None:
    for one, other in zip(sampled(a), sampled(b), strict=True):
        np.testing.assert_array_equal(one, other)


def direct(x: Any, weight: Any, size: int, seed: int) -> Any:
    """Numbers of the sampled rows by the definition: the smallest of all keys."""
    keys = np.full(len(x), np.inf)
    seen = weight > 0
    keys[seen] = -np.log1p(-uniforms(seed, 0, 0, len(x))[seen]) / weight[seen]
    chosen = np.argsort(keys, kind="stable")[: size + 1]
    return np.sort(chosen[seen[chosen]])


@st.composite
def cut(draw: st.DrawFn) -> tuple[Any, Any, tuple[int, ...], int, int]:
    """Rows, weights, a way to cut them, the size of a sample, and a seed."""
    n, seed = draw(st.integers(1, 400)), draw(st.integers(0, 2**31 - 1))
    return (*draw_rows(seed, n), draw(chunkings(n, 9)), draw(st.integers(1, 60)), seed)


Cut = tuple[Any, Any, tuple[int, ...], int, int]


@given(cut())
def test_the_sample_does_not_depend_on_chunks(case: Cut) -> None:
    x, weight, chunks, size, seed = case
    found = survey(da.from_array(x, chunks=(chunks, D)), weight, size, seed).sample
    np.testing.assert_array_equal(np.sort(found.position), direct(x, weight, size, seed))
    np.testing.assert_array_equal(found.rows, x[found.position])
    np.testing.assert_array_equal(found.weight, weight[found.position])
    for part in (found, found.first(size // 2)):
        assert len(part) == len(part.chosen)


@given(cut())
def test_a_merge_is_the_sample_of_the_whole(case: Cut) -> None:
    x, weight, chunks, size, seed = case
    blocks = [Block(x[part], i, part.start, weight[part]) for i, part in enumerate(parts(chunks))]
    # A threshold of its own for each, as in processes; shared, as in threads; and in any order.
    apart = [examine(size, seed)(block).sample for block in blocks]
    shared = examine(size, seed)
    backwards = [shared(block).sample for block in reversed(blocks)]
    whole = examine(size, seed)(Block(x, weight=weight)).sample
    assert_same(reduce(add, apart), whole)
    assert_same(reduce(add, backwards), whole)
    assert_same(reduce(add, apart[::-1]), whole)
    half = len(apart) // 2
    if half:
        assert_same(reduce(add, apart[:half]) + reduce(add, apart[half:]), whole)
    assert len(whole.keys) == min(size + 1, np.count_nonzero(weight))


@given(cut(), st.integers(1, 80))
def test_samples_are_nested(case: Cut, smaller: int) -> None:
    rows, weight, chunks, size, seed = case
    x = da.from_array(rows, chunks=(chunks, D))
    of_that_size = survey(x, weight, min(smaller, size), seed).sample
    found = survey(x, weight, size, seed).sample.first(smaller)
    assert found.size == of_that_size.size
    assert_same(found, of_that_size)


@pytest.mark.parametrize("span", [1, 4, 64])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_the_sample_does_not_depend_on_workers(workers: int, span: int) -> None:
    x, weight = draw_rows(3, 2000)
    get = partial(dask.threaded.get, num_workers=workers)
    expected = survey(x, weight, size=50, seed=3)
    for _ in range(3):
        found = survey(x, weight, size=50, seed=3, get=get, span=span, block_size=31 * 8 * D)
        assert_same(found.sample, expected.sample)


@given(cut())
def test_a_block_computed_twice_counts_once(case: Cut) -> None:
    """As after the loss of a worker: its keys are neither those of other rows, nor too large for the threshold."""
    x, weight, chunks, size, seed = case
    task, blocks = examine(size, seed), [Block(x[p], i, p.start, weight[p]) for i, p in enumerate(parts(chunks))]
    for block in blocks:
        task(block)
    again = reduce(add, [task(block).sample for block in blocks])
    np.testing.assert_array_equal(np.sort(again.position), direct(x, weight, size, seed))


def test_a_threshold_travels_without_its_keys() -> None:
    threshold = Threshold(2)
    assert threshold.lower(np.array([3.0, 1.0])) == np.inf
    assert threshold.lower(np.array([5.0])) == 5.0
    assert threshold.lower(np.array([2.0])) == 3.0
    copied = pickle.loads(pickle.dumps(threshold))
    assert copied.size == 2
    assert copied.lower(np.array([9.0])) == np.inf


@pytest.mark.parametrize("piece", [1, 7, 64, 10**6])
def test_pieces_leave_no_seam(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw_rows(1, 333)
    expected = survey(x, weight, size=30, seed=1).sample
    monkeypatch.setattr(module, "PIECE", piece)
    assert_same(survey(x, weight, size=30, seed=1).sample, expected)


def test_blocks_of_unknown_size_have_streams_of_their_own() -> None:
    x, _ = draw_rows(0, 60)
    chunked = da.from_array(np.tile(x[:20], (3, 1)), chunks=(20, D))
    hidden = da.Array(chunked.dask, chunked.name, ((np.nan,) * 3, (D,)), x.dtype)
    sample = survey(hidden, size=30).sample
    assert len(np.unique(sample.keys)) == len(sample.keys) == 31
    assert len(np.unique(sample.position)) == 31
    block, row = sample.position >> 40, sample.position & (2**40 - 1)
    assert set(block.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(sample.rows, x[row])
    # Not the same rows in each block, as one stream for all would give.
    assert len({tuple(row[block == b]) for b in range(3)}) == 3


def test_rows_of_zero_weight_are_never_sampled() -> None:
    x, weight = draw_rows(0, 400)
    x[weight == 0] = np.nan
    rows, _ = survey(x, weight, size=500).sample.points()
    np.testing.assert_array_equal(rows, x[weight > 0])


@pytest.mark.parametrize("dtype", ["f4", "f2", "i2", ">f8"])
def test_rows_are_kept_as_stored(dtype: str) -> None:
    x = (10 * draw_rows(0, 50)[0]).astype(dtype)
    sample = survey(x, size=10).sample
    assert sample.rows.dtype == x.dtype
    rows, weight = sample.points()
    assert rows.dtype == np.float64
    assert weight is None
    assert rows.shape == (10, D)


def test_other_seeds_give_other_samples() -> None:
    x, weight = draw_rows(0, 400)
    chosen = {tuple(np.sort(survey(x, weight, seed=s).sample.position)) for s in range(5)}
    assert len(chosen) == 5


# Weights of the sample


def test_points_of_all_rows_are_the_rows() -> None:
    x, _ = draw_rows(0, 50)
    rows, even = survey(x, size=50).sample.points()
    np.testing.assert_array_equal(rows, x)
    assert even is None
    weight = np.arange(1.0, 51)
    found: Any = survey(x, weight, size=50).sample.points()[1]
    np.testing.assert_allclose(found, weight / weight.mean(), rtol=1e-15)


def test_kept_rows_stand_for_the_others() -> None:
    # w / P(kept), with P(kept) = 1 - exp(-w·threshold), given the threshold.
    x, weight = draw_rows(0, 400)
    sample = survey(x, weight, size=60).sample
    rows, found = sample.points()
    assert found is not None
    order = np.argsort(sample.position)
    last = np.argmax(sample.keys)
    order = order[order != last]
    expected = sample.weight[order] / -np.expm1(-sample.keys[last] * sample.weight[order])
    np.testing.assert_array_equal(rows, sample.rows[order])
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-12)


def test_weighted_samples_are_unbiased() -> None:
    # Totals and means over many samples of 40 of 400 rows, whose weights depend on what is measured.
    random = np.random.default_rng(0)
    x = random.normal(size=(400, D))
    weight = np.exp(x[:, 0] + 0.5 * random.normal(size=400))
    total, mean = weight.sum(), weight @ x / weight.sum()
    trials, totals, means = 2000, [], []
    for seed in range(trials):
        sample = examine(40, seed)(Block(x, weight=weight)).sample
        order, last = np.arange(len(sample.keys)), np.argmax(sample.keys)
        kept = order[order != last]
        totals.append(np.sum(sample.weight[kept] / -np.expm1(-sample.keys[last] * sample.weight[kept])))
        rows, w = sample.points()
        assert w is not None
        means.append(w @ rows / w.sum())
    # Four standard errors of the average of the trials; the ratio adds a bias of the order of 1 / size.
    error = 4 * np.std(totals) / np.sqrt(trials)
    assert error < 0.02 * total
    assert abs(np.mean(totals) - total) < error
    error = 4 * np.std(means, axis=0) / np.sqrt(trials)
    assert np.all(abs(np.mean(means, axis=0) - mean) < error + 0.2 * np.std(means, axis=0))
    plain = x.mean(axis=0)
    assert abs(plain - mean).max() > 0.5  # a sample that ignored the weights would be far off


def test_every_row_is_as_likely_as_its_weight_says() -> None:
    # Of samples of one row, row i is kept with probability w_i / Σw.
    weight = np.array([1.0, 2.0, 3.0, 4.0])
    x = np.arange(4.0)[:, None]
    trials = 4000
    counts = np.zeros(4)
    for seed in range(trials):
        sample = Examine(DIAGONAL, 1, seed, Threshold(1))(Block(x, weight=weight)).sample
        rows, _ = sample.points()
        counts[int(rows[0, 0])] += 1
    share = weight / weight.sum()
    assert np.all(abs(counts / trials - share) < 4 * np.sqrt(share * (1 - share) / trials))


# The generator


@given(
    seed=st.integers(0, 2**63 - 1),
    stream=st.integers(0, 2**40),
    first=st.integers(0, 2**45),
    count=st.integers(0, 40),
    skip=st.integers(0, 40),
)
def test_a_number_depends_on_its_row_alone(seed: int, stream: int, first: int, count: int, skip: int) -> None:
    whole = uniforms(seed, stream, first, count + skip)
    np.testing.assert_array_equal(uniforms(seed, stream, first + skip, count), whole[skip:])
    assert len(whole) == count + skip
    assert np.all(whole >= 0)
    assert np.all(whole < 1)


def test_numbers_are_uniform() -> None:
    x = uniforms(1, 0, 5, 100_000)
    assert kstest(x, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 4 / np.sqrt(len(x))
    assert not np.isin(uniforms(1, 1, 5, 1000), x).any()
    assert not np.isin(uniforms(2, 0, 5, 1000), x).any()


# Moments and checks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_overall_moments(kind: str, offset: float) -> None:
    x, weight = draw_rows(0, 400)
    x = x + offset
    overall = survey(x, weight, kind=kind, block_size=30 * 8 * D).overall
    centred = x - offset  # exact: both are multiples of the spacing at 1e8
    mean = weight @ centred / weight.sum()
    scatter = (weight[:, None] * (centred - mean)).T @ (centred - mean)
    expected = covariances(scatter[None], weight.sum(keepdims=True), kind)
    found = overall.about(overall.means).scatter / overall.weight[0]
    shown = STRUCTURES[kind].shown(found, 1, D)
    np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(overall.means[0] - offset, mean, rtol=0, atol=4e-16 * max(1, offset))
    assert overall.n_rows == np.count_nonzero(weight)
    np.testing.assert_allclose(overall.total_weight, weight.sum(), rtol=1e-14)


def test_empty_and_weightless_blocks() -> None:
    x, _ = draw_rows(0, 40)
    weight = np.ones(40)
    weight[10:20] = 0
    x[10:20] = np.nan
    chunked = da.from_array(x, chunks=((0, 10, 10, 0, 20, 0), D))
    found = survey(chunked, da.from_array(weight, chunks=((0, 10, 10, 0, 20, 0),)), size=100)
    expected = survey(np.delete(x, slice(10, 20), axis=0), size=100)
    np.testing.assert_allclose(found.overall.means, expected.overall.means, rtol=0, atol=1e-14)
    assert found.overall.n_rows == 30
    np.testing.assert_array_equal(found.sample.points()[0], expected.sample.points()[0])


@pytest.mark.parametrize("start", ["labels", "responsibilities"])
def test_a_given_start_is_summed(start: str) -> None:
    x, weight = draw_rows(0, 100)
    labels = np.arange(100) % 2
    values: Any = labels if start == "labels" else np.eye(2)[labels]
    found = survey(x, weight, block_size=30 * 8 * D, **{start: values}).start
    assert found is not None
    for j in range(2):
        w = weight[labels == j]
        np.testing.assert_allclose(found.weight[j], w.sum(), rtol=1e-14)
        np.testing.assert_allclose(found.means[j], w @ x[labels == j] / w.sum(), rtol=1e-12)
    assert survey(x).start is None


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "Input X contains NaN"), (np.inf, "Input X contains infinity")]
)
@pytest.mark.parametrize("row", [0, 31, 99])
def test_bad_rows_are_named(value: float, words: str, row: int) -> None:
    x, _ = draw_rows(0, 100)
    x[row, 2] = value
    with pytest.raises(DataError, match=rf"{words}: block {row // 30}, row\(s\) {row}\."):
        survey(x, block_size=30 * 8 * D)
