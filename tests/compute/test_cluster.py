"""Waits for a cluster end: with a value, with what a task raised, or with a typed error within their limit."""

import asyncio
from collections.abc import Iterator
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskgmm.compute.block import Block
from daskgmm.compute.cluster import Cluster
from daskgmm.compute.rows import as_rows
from daskgmm.compute.window import Selection, Window
from daskgmm.errors import ClusterLostError

SHORT = {"daskgmm.timeouts.no-workers": "500 ms", "daskgmm.timeouts.scheduler": "500 ms"}

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=[1])
def client(request: Any) -> Iterator[Any]:
    """A client that is nobody's default, of so many workers."""
    local = LocalCluster(n_workers=request.param, threads_per_worker=1, processes=False, dashboard_address=None)
    with local, Client(local, timeout=30, set_as_default=False) as found, dask.config.set(SHORT):
        yield found


def len_of(block: Block) -> int:
    return len(block.x)


def fail(_: Block) -> int:
    raise TimeoutError("a task's own")


async def silence(*_: Any, **__: Any) -> None:
    await asyncio.sleep(30)


@pytest.mark.parametrize("task", [len_of, fail], ids=["finished", "failed"])
def test_a_value_that_does_not_come(client: Any, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "gather", silence)
    with pytest.raises(ClusterLostError, match=r"has not handed over a result for 0\.5 s"):
        Cluster(client=client).reduce(as_rows(np.zeros((3, 1)), block_size=8), task)


def test_a_tasks_own_timeout_is_not_the_clusters(client: Any) -> None:
    with pytest.raises(TimeoutError, match="a task's own"):
        Cluster(client=client).reduce(as_rows(np.zeros((3, 1)), block_size=8), fail)


@pytest.mark.parametrize("client", [0], indirect=True)
def test_holding_blocks_where_no_worker_is(client: Any) -> None:
    rows = as_rows(np.zeros((3, 1)), block_size=8)
    with pytest.raises(ClusterLostError, match="has had no worker"):
        Window.load(Cluster(client=client), rows, [0, 1, 2], Selection(), 0)
