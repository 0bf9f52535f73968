"""Data in a store, a model of it, and a way to run commands."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result

from daskgmm import GaussianMixture
from daskgmm._typing import Array
from daskgmm.cli import main

Run = Callable[..., Result]
Write = Callable[..., str]


@pytest.fixture
def run() -> Run:
    """Run a command in this process."""

    def run(*words: object) -> Result:
        return CliRunner().invoke(main, [str(word) for word in words])

    return run


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write values to a Zarr array that has this name."""

    def write(name: str, values: Array, rows: int = 100, **options: Any) -> str:
        place = str(tmp_path / name)
        array = zarr.create_array(
            place,
            shape=values.shape,
            chunks=(rows, *values.shape[1:]),
            dtype=values.dtype,
            config={"write_empty_chunks": True},
            **options,
        )
        array[...] = values
        return place

    return write


@pytest.fixture(scope="session")
def values() -> Array:
    """Rows of three overlapping components, (650, 3)."""
    random = np.random.default_rng(0)
    component = random.choice(3, size=650, p=[0.5, 0.3, 0.2])
    means = np.array([[0.0, 0, 0], [3, 0, 1], [0, 4, -2]])
    return means[component] + random.normal(size=(650, 3))


@pytest.fixture
def data(write: Write, values: Array) -> str:
    """The rows in a store, in chunks of 100."""
    return write("data.zarr", values)


@pytest.fixture
def fitted(values: Array) -> GaussianMixture:
    """A mixture of the rows."""
    model = GaussianMixture(3, random_state=0)
    model.fit(values)
    return model


@pytest.fixture
def model(tmp_path: Path, fitted: GaussianMixture) -> str:
    """The mixture, saved."""
    place = str(tmp_path / "model.npz")
    fitted.save(place)
    return place


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, ...]]:
    """The options of Dask's commands for a certificate of one of two authorities, "ca" and "rogue"."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(words: str) -> None:
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True, timeout=30)

    new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj"
    for name in ("ca", "rogue"):
        openssl(f"req -x509 {new} /CN={name} -keyout {name}.key -out {name}.pem -days 2")
        openssl(f"req {new} /CN=daskgmm -keyout {name}-key.pem -out {name}.csr")
        signed = f"-CA {name}.pem -CAkey {name}.key -CAcreateserial -out {name}-cert.pem -days 2"
        openssl(f"x509 -req -in {name}.csr {signed}")

    def options(name: str) -> tuple[str, ...]:
        files = {"ca-file": f"{name}.pem", "cert": f"{name}-cert.pem", "key": f"{name}-key.pem"}
        return tuple(word for what, file in files.items() for word in (f"--tls-{what}", str(folder / file)))

    return options
