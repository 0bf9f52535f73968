"""Rows kept in memory between the passes of a fit: read and decoded once, where they fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from daskgmm.compute.block import Shelf
from daskgmm.compute.cost import Cost
from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import Rows
from daskgmm.compute.sources.base import Source
from daskgmm.compute.sources.dask import Delayed
from daskgmm.compute.threads import READING


def spare_room(engine: Engine, rows: Rows) -> tuple[int, float]:
    """Bytes that blocks take at most which are read before they are wanted, and those left for rows to stay in.

    None are left for rows that are had for nothing anyway.
    """
    ahead = READING * rows.block_bytes * engine.ahead(rows)
    keepable = any(source.keepable for source in rows.sources.values())
    return ahead, max(0.0, engine.room() - ahead) if keepable else 0.0


@contextmanager
def kept(engine: Engine, rows: Rows, wanted: bool = True) -> Iterator[Rows]:
    """The same rows, such that their blocks stay in memory once read; dropped at the end, after errors too.

    In this process the first blocks stay that fit in `Engine.room` beside those that are read ahead; on a client
    all rows, or none, lie on its workers. What only the first pass looks at is not kept.
    """
    room = spare_room(engine, rows)[1] if wanted else 0.0
    if room <= 0:
        yield rows
    elif engine.client is None:
        shelf = Shelf(room)
        try:
            yield replace(rows, shelf=shelf)
        finally:
            shelf.room = 0
            shelf.blocks.clear()
    elif rows.n_rows is not None and (lasting := rows.lasting()).total_bytes <= room:
        futures: list[Any] = []
        try:
            held = {name: _persisted(engine.client, part, futures) for name, part in lasting.columns.items()}
            if engine.spend:  # the first pass finds them there, but they are read for it
                read = rows.n_rows * sum(source.read_bytes for source in lasting.sources.values())
                engine.spend(Cost(read=read, kept=-lasting.total_bytes))
            yield replace(rows, x=_persisted(engine.client, rows.x, futures), columns={**rows.columns, **held})
        finally:
            for future in futures:
                future.release()
    else:
        yield rows


def _persisted(client: Any, source: Source, futures: list[Any]) -> Source:
    """A source on the workers of a client, which computes a part anew should its worker die."""
    if not source.keepable:
        return source
    lazy = source.as_dask()
    own = {id(future) for future in client.futures_of(lazy)}  # persisted by the user: not ours to release
    held = client.persist(lazy)
    futures += [future for future in client.futures_of(held) if id(future) not in own]
    return replace(Delayed.of(held), kept=True)
