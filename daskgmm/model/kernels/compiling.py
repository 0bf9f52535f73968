"""How the kernels are compiled, and kept on disk until any file of this folder changes."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import event, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

# Rows of a tile in float64, twice as many in float32: whole vectors, several at a time, as what is left over is
# done one by one: 264 left 8 of each float32 loop. And no power of two: that would put all features of a row into
# the same few sets of the cache. 704 instead of 352 in float32 took 5 to 15 % less.
TILE = 352
TILES: dict[Any, int] = {}  # rows of other tiles, by the class of their memory
LINE = 64  # bytes of the processor's cache
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    # Never nnan and ninf: with these, no NaN is found.
    "fastmath": {"contract", "reassoc", "arcp", "nsz"},
    "no_cfunc_wrapper": True,
}
INLINED: Any = {
    **OPTIONS,
    "forceinline": True,
    "no_cpython_wrapper": True,
}


def _stamp(folder: Path) -> str:
    """Digest of all sources that compiled code is made of."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


class _FolderCache(FunctionCache):
    """Numba's cache looks at the file of an entry point alone; this one at all files of the folder."""

    stamp = _stamp(Path(__file__).parent)

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(signature, codegen), self.stamp)  # type: ignore[no-untyped-call]


def compiled(function: F) -> F:
    """Compile without the GIL, kept on disk where the machine lets us write."""
    dispatcher = numba.njit(**OPTIONS)(function)
    with suppress(RuntimeError):  # no writable place for the cache: compile anew in this process
        dispatcher._cache = _FolderCache(function)  # type: ignore[no-untyped-call]
    return cast(F, dispatcher)


def inlined(function: F) -> F:
    """Compile into every caller.

    A helper that is linked instead may be another copy, optimised in another way, in a process that compiles
    than in one that reads the disk: equal blocks would give different bits on two workers.
    """
    return cast(F, numba.njit(**INLINED)(function))


@dataclass(eq=False)
class _Compilations(event.Listener):
    """Tells of each entry point that is compiled."""

    tell: Callable[[], None]

    def on_start(self, event: Any) -> None:
        # No helper, and nothing of others: loops that Numba lifts out of a user's function have no cache at all.
        if isinstance(getattr(event.data["dispatcher"], "_cache", None), _FolderCache):
            self.tell()

    def on_end(self, event: Any) -> None:
        """The work goes on."""


@contextmanager
def while_compiling(tell: Callable[[], None]) -> Iterator[None]:
    """Have ``tell`` called, in whatever thread, each time that an entry point is compiled in this process."""

    listener = _Compilations(tell)
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)


def _prefetching(context: Any, x: Any, index: Any) -> Any:
    """Bring element ``index`` of a contiguous array near the processor, with its line of the cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, flag, flag, flag])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        builder.call(prefetch, [place, flag(0), flag(3), flag(1)])  # to read, into the first level, data
        return context.get_dummy_value()

    return types.void(x, index), generate


def _transposing(context: Any, x: Any, place: Any, step: Any, tile: Any, i: Any, t: Any) -> Any:
    """Copy four elements of ``x`` from ``place`` on, and from three places each ``step`` further, as columns.

    Of ``tile``, those from ``t`` on, in the four rows from ``i`` on.
    By whole vectors, which compiled loops would take apart: that halves the time for float32 rows.
    """
    if x.layout != "C" or tile.layout != "C" or x.dtype != tile.dtype:
        raise numba.TypingError("x must be C-contiguous, and of the type of the work.")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, place, step, _, i, t = arguments
        kinds = signature.args[0], signature.args[3]
        source = context.make_array(kinds[0])(context, builder, arguments[0])
        target = context.make_array(kinds[1])(context, builder, arguments[3])
        four, size = ir.VectorType(context.get_data_type(kinds[0].dtype), 4), kinds[0].dtype.bitwidth // 8
        rows = []
        for _ in range(4):
            start = builder.bitcast(builder.gep(source.data, [place]), four.as_pointer())
            rows.append(builder.load(start, align=size))
            place = builder.add(place, step)
        places = ir.VectorType(ir.IntType(32), 4)
        for bit in (1, 2):  # swap halves of pairs of rows that differ in one bit of their number
            low = ir.Constant(places, [4 + e - bit if e & bit else e for e in range(4)])
            high = ir.Constant(places, [4 + e if e & bit else e + bit for e in range(4)])
            for r in (0, 3 - bit):
                pair = rows[r], rows[r + bit]
                rows[r], rows[r + bit] = builder.shuffle_vector(*pair, low), builder.shuffle_vector(*pair, high)
        width = builder.extract_value(target.shape, 1)
        place = builder.add(builder.mul(i, width), t)
        for row in rows:
            start = builder.bitcast(builder.gep(target.data, [place]), four.as_pointer())
            builder.store(row, start, align=size)
            place = builder.add(place, width)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(x, whole, whole, tile, whole, whole), generate


def _lending(context: Any, values: Any) -> Any:
    """The same named tuple, whose arrays the caller holds: nobody counts who else refers to them.

    Else compiled code may do so a hundred times for each tile, which costs a fifth of a short one's time.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (found,) = arguments
        for i, kind in enumerate(signature.args[0]):
            if isinstance(kind, types.Array):
                array = context.make_array(kind)(context, builder, builder.extract_value(found, i))
                array.meminfo = ir.Constant(array.meminfo.type, None)
                found = builder.insert_value(found, array._getvalue(), i)
        return found

    return values(values), generate


def _allocating(context: Any, scratch: Any) -> Any:
    """The same arrays, a named tuple of them, as if they had been allocated here; lent, too.

    Loops over arrays from outside begin with a look at whether they overlap, and end with what is left
    of a length that is not known: for short loops, a tenth of the time. So the pointers pass through a function
    that claims to have allocated them, and the columns of a tile are told. To allocate here would take compiled
    code for each array, some 8 s of it.
    """
    n = TILES.get(scratch.instance_class, TILE * 64 // scratch[0].dtype.bitwidth)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        module, name = builder.module, "daskgmm_allocated"
        if (claim := module.globals.get(name)) is None:
            claim = ir.Function(module, ir.FunctionType(byte, [byte]), name)
            claim.linkage = "internal"
            claim.attributes.add("noinline")
            claim.return_value.add_attribute("noalias")
            ir.IRBuilder(claim.append_basic_block()).ret(claim.args[0])
        (found,) = arguments
        for i, kind in enumerate(signature.args[0]):
            array = context.make_array(kind)(context, builder, builder.extract_value(found, i))
            data = builder.call(claim, [builder.bitcast(array.data, byte)])
            array.data = builder.bitcast(data, array.data.type)
            columns = context.get_constant(types.intp, n)
            array.shape = builder.insert_value(array.shape, columns, kind.ndim - 1)
            array.meminfo = ir.Constant(array.meminfo.type, None)
            found = builder.insert_value(found, array._getvalue(), i)
        return found

    return scratch(scratch), generate


allocated: Any = intrinsic(_allocating)
lent: Any = intrinsic(_lending)
prefetch: Any = intrinsic(_prefetching)
transpose: Any = intrinsic(_transposing)
