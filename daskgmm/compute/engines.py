"""Which engine runs the passes over some rows."""

import dask.base
import dask.threaded
import distributed
from dask.local import get_sync

from daskgmm.compute.cluster import Cluster, check_fit
from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import Rows
from daskgmm.compute.threads import Plain, Threads


def engine_for(rows: Rows, own: bool = False) -> Engine:
    """Threads for rows in memory, else the scheduler that Dask would take; an explicit setting wins.

    One block in memory is not worth a scheduler. With ``own``, the rows are this process's own, such as a sample,
    and never leave it.
    """
    get = dask.base.get_scheduler()
    client = getattr(get, "__self__", None)
    if isinstance(client, distributed.Client):
        if not rows.x.local or rows.lazy:
            check_fit(client, rows)
            return Cluster(client=client)
        get = None
    if get is not None and (get is get_sync or not own):
        return Threads(get=get)
    return Plain() if rows.x.local and rows.n_blocks == 1 and not rows.lazy else Threads(get=dask.threaded.get)
