"""The memory contract: a fit's peak is promised before it starts, and does not grow with the rows."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from daskgmm._typing import Array
from daskgmm.compute.rows import as_rows
from daskgmm.estimators import outlook
from daskgmm.model.structure import FULL

CHUNK, FEATURES, COMPONENTS, THREADS = 65536, 32, 4, 2
MIB = 2**20

# A fresh process, so that neither pytest nor an earlier fit hides or causes a peak. The idle process has
# compiled and called everything once.
FIT = textwrap.dedent(
    """
    import json, sys, warnings
    from pathlib import Path
    import dask, numpy as np, zarr
    from daskgmm import GaussianMixture, MiniBatchGaussianMixture

    def peak():
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    if __name__ == "__main__":
        warnings.simplefilter("ignore")
        store, block_size, task, out, kept, like, variables = sys.argv[1:]
        dask.config.set({"daskgmm.memory-limit": kept})
        small = np.random.default_rng(0).normal(size=(1000, 32)).astype("f4")
        kind = MiniBatchGaussianMixture if task == "online" else GaussianMixture
        model = kind(4, block_size=block_size, max_iter=3, random_state=0)
        model.set_params(variables=variables.split(",") if variables else None)
        with dask.config.set(num_workers=2):
            model.set_params(init_params="subsample").fit(small)
            model.predict(small)
            if like:
                model.fit(like)
            model.set_params(init_params="auto")
            idle = peak()
            Path("/proc/self/clear_refs").write_text("5")
            if task != "predict":
                model.fit(store)
            else:
                model.predict_proba(store).to_zarr(out)
        print(json.dumps({"idle": idle, "peak": peak(), "passes": model.n_passes_}))
    """
)


def make_store(path: Path, n_bytes: int) -> Path:
    """Rows in clusters; a few random chunks repeated, so that writing takes little time."""
    random = np.random.default_rng(0)
    centres = random.normal(scale=4, size=(COMPONENTS, FEATURES))
    pool = [
        (random.normal(size=(CHUNK, FEATURES)) + centres[random.integers(COMPONENTS, size=CHUNK)]).astype(
            np.float32
        )
        for _ in range(4)
    ]
    n_chunks = n_bytes // pool[0].nbytes
    array = zarr.create_array(
        path,
        shape=(n_chunks * CHUNK, FEATURES),
        chunks=(CHUNK, FEATURES),
        dtype=np.float32,
        compressors=None,
    )
    for i in range(n_chunks):
        array[i * CHUNK : (i + 1) * CHUNK] = pool[i % len(pool)]
    return path


def measure(
    tmp_path: Path,
    store: Path | str,
    block_mib: int,
    task: str = "fit",
    kept: int = 0,
    like: Path | str = "",  # of the same kind, and small
    variables: str = "",
) -> dict[str, int]:
    script = tmp_path / "measure.py"
    script.write_text(FIT)
    command = [
        sys.executable,
        script,
        store,
        f"{block_mib} MiB",
        task,
        tmp_path / "out.zarr",
        kept,
        like,
        variables,
    ]
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=400, check=False)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, int] = json.loads(ran.stdout.splitlines()[-1])
    print(task, store, {name: value / MIB for name, value in found.items() if value > 1e6})
    return found


def promised(
    found: dict[str, int], store: Path | str, block_mib: int, kept: int = 0, variables: str = ""
) -> float:
    """The contract, in bytes, of a process that was measured; an online fit keeps a window of four blocks."""
    rows = as_rows(store, block_size=f"{block_mib} MiB", variables=variables.split(",") if variables else None)
    return found["idle"] + outlook.promised(rows, FULL, COMPONENTS, THREADS) + kept


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's VmHWM")
def test_peak_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    block_mib = 16
    measure(tmp_path, make_store(tmp_path / "tiny.zarr", 32 * MIB), block_mib)  # compiles, once for all
    small = make_store(tmp_path / "small.zarr", 512 * MIB)
    large = make_store(tmp_path / "large.zarr", 4096 * MIB)
    a, b = measure(tmp_path, small, block_mib), measure(tmp_path, large, block_mib)
    assert b["peak"] <= 1.10 * a["peak"]
    assert b["peak"] <= promised(b, large, block_mib)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's VmHWM")
def test_lazy_predict_holds_blocks_only(tmp_path: Path) -> None:
    """The probabilities alone are 64 MiB per GiB of rows and component pair; none is ever whole."""
    block_mib = 16
    store = make_store(tmp_path / "rows.zarr", 2048 * MIB)
    found = measure(tmp_path, store, block_mib, task="predict")
    assert found["peak"] <= promised(found, store, block_mib)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's VmHWM")
def test_rows_that_are_kept_stay_within_their_limit(tmp_path: Path) -> None:
    block_mib, kept = 16, 512 * MIB
    store = make_store(tmp_path / "rows.zarr", 2048 * MIB)
    measure(tmp_path, store, block_mib)  # compiles
    found = measure(tmp_path, store, block_mib, kept=kept)
    assert found["peak"] <= promised(found, store, block_mib, kept=kept)
    assert found["peak"] >= found["idle"] + kept / 2  # else nothing was tested; some is for reading ahead


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's VmHWM")
def test_an_online_fit_holds_a_window_more(tmp_path: Path) -> None:
    block_mib = 32
    measure(tmp_path, make_store(tmp_path / "tiny.zarr", 64 * MIB), block_mib, task="online")
    small = make_store(tmp_path / "small.zarr", 512 * MIB)
    large = make_store(tmp_path / "large.zarr", 2048 * MIB)
    a, b = (measure(tmp_path, store, block_mib, task="online") for store in (small, large))
    assert b["peak"] <= 1.10 * a["peak"]
    assert b["peak"] <= promised(b, large, block_mib, kept=4 * block_mib * MIB)


def write_zarr(path: Path, blocks: list[Array]) -> str:
    shape, chunks = (len(blocks) * CHUNK, FEATURES), (CHUNK, FEATURES)
    values = zarr.create_array(str(path), shape=shape, chunks=chunks, dtype="f4")  # compressed
    for i, block in enumerate(blocks):
        values[i * CHUNK : (i + 1) * CHUNK] = block
    return str(path)


def write_npy(path: Path, blocks: list[Array], by_columns: bool = False) -> str:
    values = np.lib.format.open_memmap(path, "w+", np.float32, (len(blocks) * CHUNK, FEATURES), by_columns)
    for i, block in enumerate(blocks):
        values[i * CHUNK : (i + 1) * CHUNK] = block
    return str(path)


def write_hdf5(path: Path, blocks: list[Array], **how: Any) -> str:
    with h5py.File(path, "w") as file:
        values = file.create_dataset("x", shape=(len(blocks) * CHUNK, FEATURES), dtype="f4", **how)
        for i, block in enumerate(blocks):
            values[i * CHUNK : (i + 1) * CHUNK] = block
    return f"{path}::x"


def write_netcdf(path: Path, blocks: list[Array], format: Any) -> str:
    with netCDF4.Dataset(path, "w", format=format) as file:
        file.createDimension("row", len(blocks) * CHUNK)
        file.createDimension("feature", FEATURES)
        values = file.createVariable("x", "f4", ("row", "feature"))
        for i, block in enumerate(blocks):
            values[i * CHUNK : (i + 1) * CHUNK] = block
    return f"{path}::x"


def write_parquet(path: Path, blocks: list[Array]) -> str:
    names = [f"c{j}" for j in range(FEATURES)]
    with pq.ParquetWriter(path, pa.schema([(name, pa.float32()) for name in names])) as file:
        for block in blocks:
            file.write_table(pa.table(dict(zip(names, block.T.copy(), strict=True))), row_group_size=CHUNK)
    return str(path)


def write_zip(path: Path, blocks: list[Array]) -> str:
    with zarr.storage.ZipStore(path, mode="w") as store:
        shape, chunks = (len(blocks) * CHUNK, FEATURES), (CHUNK, FEATURES)
        values = zarr.create_array(store, shape=shape, chunks=chunks, dtype="f4", compressors=None)
        for i, block in enumerate(blocks):
            values[i * CHUNK : (i + 1) * CHUNK] = block
    return str(path)


def write_group(path: Path, blocks: list[Array]) -> str:
    group = zarr.create_group(str(path))
    for j in range(FEATURES):
        values = group.create_array(
            f"c{j}", shape=(len(blocks) * 256, 256), chunks=(256, 256), dtype="f4", compressors=None
        )
        for i, block in enumerate(blocks):
            values[i * 256 : (i + 1) * 256] = block[:, j].reshape(256, 256)
    return str(path)


KINDS: dict[str, tuple[Callable[[Path, list[Array]], str], str]] = {
    "zarr": (write_zarr, ""),
    "npy": (write_npy, ""),
    "columns.npy": (partial(write_npy, by_columns=True), ""),
    "h5": (write_hdf5, ""),
    "chunked.h5": (partial(write_hdf5, chunks=(CHUNK, FEATURES), compression="lzf"), ""),
    "nc": (partial(write_netcdf, format="NETCDF4"), ""),
    "classic.nc": (partial(write_netcdf, format="NETCDF3_64BIT_OFFSET"), ""),
    "parquet": (write_parquet, ""),
    "zip": (write_zip, ""),
    "group": (write_group, ",".join(f"c{j}" for j in range(FEATURES))),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's VmHWM")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_path_keeps_the_promise(kind: str, tmp_path: Path) -> None:
    block_mib, (write, variables) = 16, KINDS[kind]
    random = np.random.default_rng(0)
    pool = [random.normal(loc=4 * i, size=(CHUNK, FEATURES)).astype(np.float32) for i in range(COMPONENTS)]
    small = write(tmp_path / f"small.{kind}", pool[:2])
    large = write(tmp_path / f"large.{kind}", pool * (1024 * MIB // pool[0].nbytes // COMPONENTS))
    measure(tmp_path, small, block_mib, like=small, variables=variables)  # compiles
    found = measure(tmp_path, large, block_mib, like=small, variables=variables)
    bound = promised(found, large, block_mib, variables=variables)
    print(f"{kind}: {(found['peak'] - found['idle']) / MIB:.0f} of {(bound - found['idle']) / MIB:.0f} MiB")
    assert found["peak"] <= bound
    shutil.rmtree(tmp_path)  # pytest would keep a GiB
