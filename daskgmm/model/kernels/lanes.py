"""Sums of products of eight components, or of the columns of a tile, at a time: by whole vectors.

Rows that miss the same may be few, and compiled loops do by ones what is left of whole vectors.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 8  # components whose factors are found at once
WORD = ir.IntType(64)
MIXED = ("contract",)


def _place(builder: Any, data: Any, index: Any, vector: Any) -> Any:
    """Where a vector begins, with its first element at ``index``."""
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _subtracting(
    context: Any, table: Any, out: Any, source: Any, given: Any, a: Any, b: Any, step: Any, n: Any
) -> Any:
    """``table[out] = source[given] - Σ_p table[a + p] * table[b + step * p]`` over ``p < n``; all `LANES` wide."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, out, _, given, a, b, step, n = arguments
        data = context.make_array(table)(context, builder, arguments[0]).data
        beside = context.make_array(source)(context, builder, arguments[2]).data
        vector, lanes = ir.VectorType(ir.DoubleType(), LANES), WORD(LANES)
        target = _place(builder, data, builder.mul(out, lanes), vector)
        origin = _place(builder, beside, builder.mul(given, lanes), vector)
        total = cgutils.alloca_once_value(builder, builder.load(origin, align=8))
        a, b, step = (builder.mul(value, lanes) for value in (a, b, step))
        with cgutils.for_range(builder, n) as loop:
            first = _place(builder, data, builder.add(a, builder.mul(loop.index, lanes)), vector)
            second = _place(builder, data, builder.add(b, builder.mul(loop.index, step)), vector)
            pair = builder.fmul(builder.load(first, align=8), builder.load(second, align=8), MIXED)
            builder.store(builder.fsub(builder.load(total), pair, MIXED), total)
        builder.store(builder.load(total), target, align=8)
        return context.get_dummy_value()

    return types.void(table, types.intp, source, *(types.intp,) * 5), generate


class _Columns:
    """Columns of arrays from ``start`` to ``stop``, by vectors; the last may begin before the end of a tile."""

    def __init__(self, builder: Any, real: Any, columns: Any, start: Any, stop: Any) -> None:
        self.builder, self.real, self.columns, self.start, self.stop = builder, real, columns, start, stop
        self.width = 16 if real == ir.FloatType() else 8
        self.vector, self.whole = (ir.VectorType(kind, self.width) for kind in (real, WORD))

    @classmethod
    def of(
        cls, context: Any, builder: Any, kinds: Sequence[Any], values: Sequence[Any], start: Any, stop: Any
    ) -> tuple["_Columns", list[Any]]:
        """Those of arrays of these types, the first of which says how many there are; and where all arrays lie."""
        arrays = [context.make_array(kind)(context, builder, v) for kind, v in zip(kinds, values, strict=True)]
        columns, real = builder.extract_value(arrays[0].shape, 1), context.get_data_type(kinds[0].dtype)
        return cls(builder, real, columns, start, stop), [array.data for array in arrays]

    def spread(self, value: Any, kind: Any) -> Any:
        """A vector of one value."""
        unknown, short = ir.Constant(kind, ir.Undefined), ir.IntType(32)
        one = self.builder.insert_element(unknown, value, short(0))
        return self.builder.shuffle_vector(
            one, unknown, ir.Constant(ir.VectorType(short, self.width), [0] * self.width)
        )

    def __iter__(self) -> Iterator[Any]:
        """Where a vector begins, and which of its columns are meant; what is done with it becomes a loop."""
        builder, lanes = self.builder, WORD(self.width)
        length = builder.add(builder.sub(self.stop, self.start), WORD(self.width - 1))
        with cgutils.for_range(builder, builder.sdiv(length, lanes)) as loop:
            begin = builder.add(self.start, builder.mul(loop.index, lanes))
            last = builder.sub(self.columns, lanes)
            at = builder.select(builder.icmp_signed("<", begin, last), begin, last)
            index = builder.add(self.spread(at, self.whole), ir.Constant(self.whole, list(range(self.width))))
            reached = builder.icmp_signed(">=", index, self.spread(begin, self.whole))
            inside = builder.icmp_signed("<", index, self.spread(self.stop, self.whole))
            yield at, builder.and_(reached, inside)

    def place(self, data: Any, row: Any, at: Any) -> Any:
        """Where a vector of a row lies."""
        return _place(self.builder, data, self.builder.add(self.builder.mul(row, self.columns), at), self.vector)

    def load(self, place: Any) -> Any:
        """A vector."""
        return self.builder.load(place, align=4)

    def put(self, place: Any, value: Any, inside: Any) -> None:
        """Into the columns that are meant, no other."""
        self.builder.store(self.builder.select(inside, value, self.load(place)), place, align=4)

    def sum(self, initial: Any, gains: Any, a: Any, lane: Any, n: Any, z: Any, at: Any) -> Any:
        """``initial + Σ_p gains[a + p, lane] * z[p]`` over ``p < n``."""
        builder = self.builder
        total = cgutils.alloca_once_value(builder, initial)
        with cgutils.for_range(builder, n) as loop:
            source = self.load(self.place(z, loop.index, at))
            factor = self.spread(self.gain(gains, builder.add(a, loop.index), lane), self.vector)
            builder.store(builder.fadd(builder.load(total), builder.fmul(source, factor, MIXED), MIXED), total)
        return builder.load(total)

    def gain(self, gains: Any, row: Any, lane: Any) -> Any:
        """One number of a table, as wide as the columns."""
        place = self.builder.add(self.builder.mul(row, WORD(LANES)), lane)
        value = self.builder.load(self.builder.gep(gains, [place]))
        return value if self.real == ir.DoubleType() else self.builder.fptrunc(value, self.real)


def _whitening(
    context: Any,
    held: Any,
    row: Any,
    z: Any,
    i: Any,
    table: Any,
    a: Any,
    lane: Any,
    value: Any,
    out: Any,
    start: Any,
    stop: Any,
) -> Any:
    """``z[i] = table[a + i, lane] * (held[row] - value - Σ_p table[a + p, lane] * z[p])`` over ``p < i``.

    In the columns from ``start`` to ``stop``, where the squares are added to ``out``; others of z get lost.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, row, whitened, i, gains, a, lane, value, squares, start, stop = arguments
        given = (held, z, table, out), (rows, whitened, gains, squares)
        tile, (rows, whitened, gains, squares) = _Columns.of(context, builder, *given, start, stop)
        for at, inside in tile:
            first = builder.fsub(tile.spread(value, tile.vector), tile.load(tile.place(rows, row, at)), MIXED)
            left = tile.sum(first, gains, a, lane, i, whitened, at)
            inverse = tile.spread(builder.fneg(tile.gain(gains, builder.add(a, i), lane)), tile.vector)
            found = builder.fmul(left, inverse, MIXED)
            builder.store(found, tile.place(whitened, i, at), align=4)
            place = tile.place(squares, WORD(0), at)
            tile.put(place, builder.fadd(tile.load(place), builder.fmul(found, found, MIXED), MIXED), inside)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(held, whole, z, whole, table, whole, whole, held.dtype, out, whole, whole), generate


def _filling(
    context: Any,
    held: Any,
    row: Any,
    z: Any,
    n: Any,
    table: Any,
    a: Any,
    lane: Any,
    value: Any,
    start: Any,
    stop: Any,
) -> Any:
    """``held[row] = value + Σ_p table[a + p, lane] * z[p]`` over ``p < n``, from ``start`` to ``stop``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, row, whitened, n, gains, a, lane, value, start, stop = arguments
        given = (held, z, table), (rows, whitened, gains)
        tile, (rows, whitened, gains) = _Columns.of(context, builder, *given, start, stop)
        for at, inside in tile:
            found = tile.sum(tile.spread(value, tile.vector), gains, a, lane, n, whitened, at)
            tile.put(tile.place(rows, row, at), found, inside)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(held, whole, z, whole, table, whole, whole, held.dtype, whole, whole), generate


subtract: Any = intrinsic(_subtracting)
whiten: Any = intrinsic(_whitening)
fill: Any = intrinsic(_filling)
