"""``daskgmm check`` says what `daskgmm.check` does, of all that a fit can be told to read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import Result

import daskgmm
from daskgmm._typing import Array

Run = Callable[..., Result]
Write = Callable[..., str]
MEASURED = ("sample", "seconds_per_pass")


def plain(told: dict[str, Any]) -> Any:
    """As JSON has it, without times."""
    return json.loads(json.dumps({name: value for name, value in told.items() if name not in MEASURED}))


def test_the_same_as_in_python(run: Run, data: str) -> None:
    how = {"covariance_type": "diag", "block_size": "4 kB", "nan_policy": "omit"}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in how.items()]
    found = run("check", data, "-k", 3, *options, "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert plain(told) == plain(daskgmm.check(data, 3, **how).to_dict())
    assert told["n_blocks"] > 1
    table = run("check", data, "-k", 3).stdout
    assert table.startswith(f"data             {data}\nrows             650 of 3 features, float64\n")


def test_what_is_read_is_named_as_for_a_fit(run: Run, write: Write, values: Array, tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "g.zarr"))
    for name, column in zip("ts", values.T, strict=False):
        group.create_array(name, data=column, chunks=(100,))
    group.create_array("x", data=values, chunks=(100, 3))
    weights = write("w.zarr", np.ones(len(values)))
    told = json.loads(run("check", tmp_path / "g.zarr", "--variables", "t,s", "--json").stdout)
    assert (told["n_features"], told["feature_names"]) == (2, ["t", "s"])
    told = json.loads(run("check", tmp_path / "g.zarr", "--array", "x", "--weights", weights, "--json").stdout)
    assert (told["n_features"], told["weight_facts"]["n_chunks"]) == (3, 7)
    # Named as for a fit, and refused alike.
    for words in (["g.zarr"], ["nothing.zarr"]):
        place = [tmp_path / words[0], "-k", 2]
        fitted, checked = run("fit", *place, "--out", tmp_path / "m.npz"), run("check", *place)
        assert (checked.exit_code, checked.stderr) == (fitted.exit_code, fitted.stderr) == (4, fitted.stderr)


def test_what_a_fit_would_refuse_is_told_in_options(run: Run, data: str) -> None:
    (Path(data) / "c/2/0").unlink()
    found = run("check", data, "-k", 3)
    assert found.exit_code == 4
    told = " ".join(found.stdout.split())
    assert "problem X lacks 1 of 7 chunks that were looked up. --missing-chunks fill reads them" in told
    assert "would be refused" in found.stderr
    assert run("check", data, "-k", 3, "--missing-chunks", "fill").exit_code == 0


@pytest.mark.timeout(60)
def test_on_a_cluster(run: Run, data: str) -> None:
    found = run("check", data, "--scheduler", "tcp://127.0.0.1:9", "--scheduler-timeout", "200ms")
    assert found.exit_code == 5
    assert "No Dask scheduler answers" in found.stderr
