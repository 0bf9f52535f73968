"""What a fit of some rows would read, need and cost, and what they may buy: told by metadata and one block."""

import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from dask.utils import format_bytes

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.cache import spare_room
from daskgmm.compute.engine import Engine
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import Rows
from daskgmm.compute.sources.base import Facts
from daskgmm.compute.threads import READING
from daskgmm.errors import DataError, printable
from daskgmm.estimators.checks import read_structure
from daskgmm.estimators.gaussian_mixture import GaussianMixture
from daskgmm.fit.recipe import sample_size
from daskgmm.fit.run import too_few
from daskgmm.fit.starts import MORE_BYTES, MORE_ROWS
from daskgmm.fit.survey import Threshold
from daskgmm.fit.tasks import Examine, Expect, seen
from daskgmm.model.mixture import Mixture
from daskgmm.model.structure import Structure

# What a fit of m rows loses, in units of p/(2m): the median over 26 problems, from m = 5·p on and below.
LOSS, LOSS_OF_FEW = 1.15, 1.4
SMALL_LOSS = 0.01  # nats a row
WARM = 1000  # rows on which the E-step is compiled before it is timed
FILLING, STARTING = 2_500, 2  # of a thread: bytes to fill rows in, a number of the means; samples
THREAD_BYTES = 50e6  # of a thread, for what is not counted: its arena of the heap, and what libraries hold
WIDTH, NAMED = 79, 4  # columns of a line; features that it names


@dataclass(frozen=True)
class Sample:
    """What one block of the rows holds, and how long that took."""

    block: int
    first_row: int | None  # None where chunk sizes are unknown
    n_rows: int
    n_nan_rows: int
    nan_columns: tuple[str, ...]  # by name, or by number
    constant_columns: tuple[str, ...]
    read_seconds: float  # of one thread
    compute_seconds: float | None  # of one thread, for an E-step; None where the values allow none


@dataclass(frozen=True)
class Outlook:
    """What a fit would read, need and cost; `str` of it is a table.

    Attributes
    ----------
    data : str
        The path, or the type of what was given.
    facts, weight_facts : Facts
        What the rows, and their weights, say of themselves: kind, codecs, chunks that are stored and missing,
        checksums; None for no weights.
    n_rows : int or None
        None where chunk sizes are unknown, and so below.
    n_features, dtype, feature_names, decoded
        Of the rows, as they are read.
    n_blocks, block_rows, block_bytes
        The plan: how many blocks, and the rows and bytes of the largest, weights included.
    bytes_per_pass : float or None
        Of all rows, as they are in memory.
    n_threads : int
        That compute.
    memory_bytes : float
        What a batch fit takes at most, in each process, beside what that has when idle.
    spare_bytes : float
        Of rows that are read ahead or stay in memory between passes, at most, in all processes together:
        ``daskgmm.memory-limit`` bounds it. ``keeps_all`` says whether all rows stay.
    sample : Sample or None
        One block; None where it cannot be read.
    seconds_per_pass : float or None
        Reading and computing, as one block measured on this machine tells, on all threads.
    n_components, covariance_type, n_parameters
        Of the mixture.
    sample_rows : int
        Of a sample that a start is found on.
    problems : tuple of str
        Why a fit would be refused, as far as that can be known.
    """

    data: str
    facts: Facts
    weight_facts: Facts | None
    n_rows: int | None
    n_features: int
    dtype: str
    feature_names: tuple[str, ...] | None
    decoded: str
    n_blocks: int
    block_rows: int
    block_bytes: int
    bytes_per_pass: float | None
    n_threads: int
    memory_bytes: float
    spare_bytes: float
    keeps_all: bool
    sample: Sample | None
    seconds_per_pass: float | None
    n_components: int
    covariance_type: str
    n_parameters: int
    sample_rows: int
    problems: tuple[str, ...]

    def loss(self, n_rows: float) -> float:
        """Nats a row by which a fit of so many rows falls short of the best mixture of this kind, on average.

        That is about p/(2·n_rows) for p parameters (Akaike 1974), with a factor that was measured.
        """
        return (LOSS if n_rows >= 5 * self.n_parameters else LOSS_OF_FEW) * self.n_parameters / (2 * n_rows)

    def to_dict(self) -> dict[str, Any]:
        """All that is known, for JSON."""
        told = {**asdict(self), "facts": self.facts._asdict()}
        told["weight_facts"] = None if self.weight_facts is None else self.weight_facts._asdict()
        few, n = self.sample_rows, self.n_rows
        return {**told, "loss_of_sample": self.loss(few), "loss_of_all": None if n is None else self.loss(n)}

    def __str__(self) -> str:
        lines = []
        for title, text in _table(self):
            wrapped = textwrap.wrap(printable(text), WIDTH - 17, break_on_hyphens=False, break_long_words=False)
            lines += [
                f"{name:<17}{line}" for name, line in zip([title, *[""] * len(wrapped)], wrapped, strict=False)
            ]
        return "\n".join(lines)


def check(X: Any, n_components: int = 1, *, sample_weight: Any = None, **settings: Any) -> Outlook:
    """Tell what a fit of ``X`` would read, need and cost, before it begins.

    One block is read, from the middle; beside it nothing but metadata, and look-ups of stored chunks: all of up to
    100,000 by one listing, or 1,000 of more, or of shards. A Dask array computes whatever that block depends on.

    Parameters
    ----------
    X : (n, d)
        Rows, of any kind that `GaussianMixture` names.
    n_components : int
    sample_weight : (n,), optional
    **settings
        Parameters of `GaussianMixture`: ``covariance_type``, and those that say how rows are read.

    Returns
    -------
    Outlook
        What is known, as fields; ``print`` shows a table. Its ``problems`` are why a fit would be refused, as far
        as one block shows them.

    Raises
    ------
    DataError, FileNotFoundError
        Where ``X`` or ``sample_weight`` cannot be opened as what they have to be.
    TypeError, ValueError
        For settings that `GaussianMixture` does not have, or does not take.
    """
    model = GaussianMixture(n_components, **settings)
    model._validate_params()
    rows = model._rows(X, weight=sample_weight)
    engine, structure = engine_for(rows), read_structure(model, rows.n_features)
    k, d, n = n_components, rows.n_features, rows.n_rows
    names = None if rows.feature_names is None else tuple(rows.feature_names)
    problems = [] if n is None or n >= k else [str(too_few(n, k, False))]
    facts = {title: source.facts() for title, source in rows.sources.items()}
    if model.missing_chunks == "raise":
        problems += [_lost(title, told) for title, told in facts.items() if told.n_missing]
    sample, (spare_bytes, keeps_all) = _sampled(rows, structure, k, names, problems), _spare(rows, engine)
    return Outlook(
        data=str(X) if isinstance(X, (str, os.PathLike)) else f"{type(X).__module__}.{type(X).__qualname__}",
        facts=facts["X"],
        weight_facts=facts.get("sample_weight"),
        n_rows=n,
        n_features=d,
        dtype=str(rows.x.dtype),
        feature_names=names,
        decoded=rows.x.decoded,
        n_blocks=rows.n_blocks,
        block_rows=rows.block_bytes // rows.row_bytes,
        block_bytes=rows.block_bytes,
        bytes_per_pass=None if n is None else rows.total_bytes,
        n_threads=engine.threads,
        memory_bytes=promised(rows, structure, k, engine.threads_each),
        spare_bytes=spare_bytes,
        keeps_all=keeps_all,
        sample=sample,
        seconds_per_pass=_seconds(rows, engine, sample, facts["X"].one_reader),
        n_components=k,
        covariance_type=structure.name,
        n_parameters=structure.n_parameters(k, d) + k * d + k - 1,
        sample_rows=sample_size(k, d),
        problems=tuple(problems),
    )


def promised(rows: Rows, structure: Structure, k: int, threads: int) -> float:
    """Bytes that a batch fit takes at most in a process of so many threads, beside what it has when idle.

    What the memory limit bounds, rows that are kept between passes or read ahead, is not among them.
    """
    d, filled = rows.n_features, rows.missing_nan and not structure.form.separate
    size = max(sample_size(k, d), sample_size(k, d, min(MORE_ROWS, MORE_BYTES // (8 * d))))
    sample = min(size, rows.n_rows or math.inf) * d * 8
    statistics = 8 * (k * (1 + d) + math.prod(structure.held(k, d)))
    block = max(rows.block_bytes, *(source.chunk_bytes for source in rows.sources.values()))
    each = (math.log2(max(1, rows.n_blocks)) + 2) * statistics + THREAD_BYTES + filled * FILLING * k * d
    return 4 * sample + threads * (max(READING * block, STARTING * sample) + each)


def _lost(title: str, facts: Facts) -> str:
    """Say that chunks are missing, which a fit would not read."""
    return (
        f"{title} lacks {facts.n_missing:,} of {facts.n_looked_up:,} chunks that were looked up. "
        'missing_chunks="fill" reads them as the fill value.'
    )


def _spare(rows: Rows, engine: Engine) -> tuple[float, bool]:
    """Bytes of rows that are read ahead or kept, at most, and whether all are kept, as `cache.kept` has it."""
    ahead, room = spare_room(engine, rows)
    if not any(source.keepable for source in rows.sources.values()):
        return ahead, rows.x.local
    if rows.n_rows is not None and rows.total_bytes <= room:
        return ahead + rows.total_bytes, True
    return ahead + (0.0 if engine.client is not None else room), False


def _sampled(
    rows: Rows, structure: Structure, k: int, names: tuple[str, ...] | None, problems: list[str]
) -> Sample | None:
    """What the middle block holds; what a fit would not take of it joins the problems."""
    index, began = rows.n_blocks // 2, perf_counter()
    try:
        block = rows.read(index)
    except DataError as error:
        problems.append(str(error))
        return None
    read_seconds = perf_counter() - began
    compute_seconds = None
    try:
        Examine(structure, k, 0, Threshold(1))(block)
    except DataError as error:
        problems.append(str(error))
    with suppress(DataError):  # infinity
        compute_seconds = _timed(block.without_nan(), structure, k)
    titles = names or tuple(map(str, range(rows.n_features)))
    nan, constant = _odd(block)
    return Sample(
        block=index,
        first_row=block.first_row,
        n_rows=len(block.x),
        n_nan_rows=int(nan.any(axis=1).sum()),
        nan_columns=_picked(titles, nan.any(axis=0)),
        constant_columns=_picked(titles, constant),
        read_seconds=read_seconds,
        compute_seconds=compute_seconds,
    )


def _odd(block: Block) -> tuple[Array, Array]:
    """Where a block holds NaN, and which of its columns hold one number, in rows of positive weight."""
    d = block.x.shape[1]
    nan = np.isnan(block.x) if block.x.dtype.kind == "f" else np.zeros((len(block.x), d), bool)
    x = seen(block).x
    if not len(x):
        return nan, np.zeros(d, bool)
    low, high = (np.asarray(extreme.reduce(x, axis=0)) for extreme in (np.fmin, np.fmax))  # they pass NaN over
    return nan, np.equal(low, high)


def _picked(titles: Sequence[str], mask: Any) -> tuple[str, ...]:
    return tuple(title for title, picked in zip(titles, mask, strict=True) if picked)


def _timed(block: Block, structure: Structure, k: int) -> float | None:
    """Seconds of an E-step over a block; `DataError` where its values allow none."""
    overall = Examine(structure, k, 0, Threshold(1))(replace(block, columns={})).overall
    x = seen(block).x
    if not len(x):
        return None
    held = structure.held(k, x.shape[1])
    variances = structure.form.diagonals(overall.scatter)[0] / overall.weight.sum()
    variances = np.where(variances > 0, variances, 1.0)
    values = np.broadcast_to(structure.form.unit(held[-1]) * variances, held).copy()
    means = x[np.linspace(0, len(x) - 1, k).astype(int)].astype(np.float64)
    weights = np.full(k, 1 / k)
    expect = Expect(Mixture(weights, means, structure.covariance(values, weights)))
    weight = block.weight
    expect(replace(block, x=block.x[:WARM], weight=None if weight is None else weight[:WARM]))  # compiles
    began = perf_counter()
    expect(block)
    return perf_counter() - began


def _seconds(rows: Rows, engine: Engine, sample: Sample | None, one_reader: bool) -> float | None:
    """What a pass takes, of which this is one block."""
    if sample is None or sample.compute_seconds is None:
        return None
    share = rows.n_blocks if rows.n_rows is None else rows.n_rows / sample.n_rows
    work = sample.read_seconds + sample.compute_seconds
    return share * max(work / engine.threads, sample.read_seconds * one_reader)


def _table(told: Outlook) -> Iterator[tuple[str, str]]:
    """Titles and texts of the lines."""
    n = "an unknown number" if told.n_rows is None else f"{told.n_rows:,}"
    yield "data", told.data
    yield "rows", f"{n} of {told.n_features:,} features, {told.dtype}{_listed(': ', told.feature_names)}"
    yield from _stored("", told.facts)
    if told.weight_facts is not None:
        yield from _stored("weights: ", told.weight_facts)
    yield "decoded", told.decoded or "no: the numbers are taken as they are"
    yield "masked", told.facts.masked or "no: NaN alone is missing"
    size = f"of at most {told.block_rows:,} rows, {format_bytes(told.block_bytes)}"
    yield "blocks", f"{told.n_blocks:,} {size if told.block_bytes else 'of unknown size'}"
    yield from _costs(told)
    if told.sample is not None:
        yield from _seen(told.sample)
    yield from _gains(told)
    for problem in told.problems:
        yield "problem", " ".join(problem.split())


def _stored(title: str, facts: Facts) -> Iterator[tuple[str, str]]:
    """How an input is stored."""
    yield f"{title}kind", facts.kind + (f", {', '.join(facts.codecs)}" if facts.codecs else "")
    if facts.n_chunks is not None:
        shape = "" if facts.chunk_shape is None else f" of {' x '.join(f'{size:,}' for size in facts.chunk_shape)}"
        there = f", {facts.n_missing:,} missing of {facts.n_looked_up:,} looked up" if facts.n_looked_up else ""
        yield f"{title}chunks", f"{facts.n_chunks:,}{shape}{there}"
    if facts.n_chunks is not None or facts.stored_bytes is not None:
        words = {None: "not known", True: "yes", False: "no: damage may go unseen"}
        yield f"{title}checksums", words[facts.checksums]


def _costs(told: Outlook) -> Iterator[tuple[str, str]]:
    """What a pass reads, and what it takes."""
    if told.bytes_per_pass is not None:
        stored = told.facts.stored_bytes
        compressed = "" if stored is None else f", stored in {format_bytes(int(stored))}"
        yield "a pass reads", f"{format_bytes(int(told.bytes_per_pass))}{compressed}"
    if told.sample is not None and told.seconds_per_pass is not None:
        read, compute = told.sample.read_seconds, told.sample.compute_seconds
        yield (
            "a pass takes",
            f"about {told.seconds_per_pass:.3g} s on {told.n_threads} thread(s), by one block measured here "
            f"({read:.2g} s to read, {compute:.2g} s to compute)",
        )
    memory = f"at most {format_bytes(int(told.memory_bytes))} for each process, beside what it has when idle"
    ahead = f", and {format_bytes(int(told.spare_bytes))} of rows read ahead or kept" if told.spare_bytes else ""
    kept = "all rows stay" if told.keeps_all else "not all rows stay"
    yield "memory", f"{memory}{ahead}; {kept} in memory between passes"


def _seen(sample: Sample) -> Iterator[tuple[str, str]]:
    """What one block holds."""
    first, last = sample.first_row, (sample.first_row or 0) + sample.n_rows - 1
    yield (
        "sample",
        f"block {sample.block}, "
        + (f"{sample.n_rows:,} rows" if first is None else f"rows {first:,} to {last:,}"),
    )
    yield "  NaN", f"in {sample.n_nan_rows:,} rows{_listed(', in columns ', sample.nan_columns)}"
    yield "  constant", _listed("columns ", sample.constant_columns) or "no column"


def _gains(told: Outlook) -> Iterator[tuple[str, str]]:
    """What more rows buy."""
    p, few, n = told.n_parameters, told.sample_rows, told.n_rows
    yield "mixture", f"{told.n_components:,} component(s), {told.covariance_type}: {p:,} parameters"
    if n is not None and n > few:
        yield (
            "full data buy",
            f"about {told.loss(few) - told.loss(n):.2g} nats a row: a fit of {few:,} rows falls "
            f"{told.loss(few):.2g} short of the best such mixture, one of all rows {told.loss(n):.2g}",
        )
    elif n is not None:
        yield "loss", f"about {told.loss(n):.2g} nats a row, short of the best such mixture"
    yield "enough", f"{math.ceil(LOSS * p / (2 * SMALL_LOSS)):,} rows, for a loss of {SMALL_LOSS}"


def _listed(lead: str, names: Sequence[str] | None) -> str:
    """Some names, and how many more there are; nothing for none."""
    if not names:
        return ""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{lead}{', '.join(names[:NAMED])}{more}"
