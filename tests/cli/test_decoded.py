"""Every command reads a packed store as its attributes say, or its numbers with --raw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import Result

from daskgmm import GaussianMixture
from daskgmm._typing import Array

Run = Callable[..., Result]
PACKING = {"dtype": "i2", "scale_factor": 0.01, "add_offset": 20.0, "_FillValue": -32768}


@pytest.fixture(params=[2, 3])
def packed(request: pytest.FixtureRequest, values: Array, tmp_path: Path) -> str:
    """The rows, every tenth without values, as xarray packs them."""
    held = values.copy()
    held[::10] = np.nan
    xr.Dataset({"x": (("obs", "var"), held)}).to_zarr(
        tmp_path / "sea.zarr", encoding={"x": PACKING}, zarr_format=request.param, consolidated=False
    )
    return str(tmp_path / "sea.zarr" / "x")


def told(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.stderr
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_every_command_decodes_or_reads_raw(run: Run, packed: str, values: Array, tmp_path: Path) -> None:
    out, raw, online = (str(tmp_path / name) for name in ("m.npz", "raw.npz", "online.npz"))
    fit = ("fit", packed, "-k", 1, "--seed", 0, "--nan-policy", "omit", "--json", "--out")
    told(run(*fit, out))
    told(run(*fit, raw, "--raw"))
    told(run(*fit, online, "--online"))
    there = np.arange(len(values)) % 10 > 0
    numbers = np.asarray(zarr.open_array(packed)[...])
    np.testing.assert_allclose(GaussianMixture.load(out).means_[0], values[there].mean(axis=0), atol=0.005)
    np.testing.assert_allclose(GaussianMixture.load(raw).means_[0], numbers.mean(axis=0), rtol=1e-12)
    decoded = "from int16: _FillValue=-32768, scale_factor=0.01, add_offset=20.0"
    assert [told(run("info", m, "--json"))["decoded"] for m in (out, raw, online)] == [decoded, None, decoded]
    # What reads for a model reads as its fit did, unless it is told otherwise.
    score = {m: told(run("score", packed, m, "--json"))["total_weight"] for m in (out, raw, online)}
    assert score == {out: there.sum(), raw: len(values), online: there.sum()}
    undecoded = run("score", packed, out, "--raw", "--json")
    assert told(undecoded)["total_weight"] == len(values)
    assert f"The values of the fit were decoded {decoded}, and with decode_cf=False (--raw)" in undecoded.stderr
    assert "Warning" not in run("score", packed, raw, "--json").stderr
    again = run(*fit[:2], "--warm-start", out, *fit[6:], str(tmp_path / "again.npz"), "--raw")
    assert "(--raw) those of X are not" in again.stderr
    assert told(run("score", packed, raw, "--decode-cf", "--json"))["total_weight"] == there.sum()
    told(run("predict", packed, out, "--out", tmp_path / "labels.zarr", "--json"))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "labels.zarr")[...], np.where(there, 0, -1))
    more = zarr.open_array(packed, mode="r+")
    more.append(numbers[:50])
    seen = told(run("update", online, packed, "--out", online, "--overwrite", "--json"))["n_samples_seen"]
    assert seen == there.sum() + there[:50].sum()


def test_a_checkpoint_names_the_option(run: Run, packed: str, tmp_path: Path) -> None:
    for words, given in ((("--raw",), True), ((), None)):
        kept = tmp_path / f"{len(words)}.ckpt"
        run("fit", packed, "-k", 1, "--nan-policy", "omit", "--checkpoint", kept, "--out", f"{kept}.npz", *words)
        options = told(run("info", kept, "--json"))["options"]
        assert isinstance(options, dict)
        assert options.get("--raw") == given


def test_what_cannot_be_decoded_names_the_option(run: Run, tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "x.zarr", data=np.ones((4, 2), np.int16))
    array.attrs["scale_factor"] = [1, 2]
    found = run("fit", tmp_path / "x.zarr", "-k", 1, "--out", tmp_path / "m.npz")
    assert found.exit_code == 4
    assert "With decode_cf=False (--raw) its numbers are read" in found.stderr


def test_starts_are_decoded_and_never_filled(run: Run, packed: str, tmp_path: Path) -> None:
    xr.Dataset({"m": (("component", "var"), np.array([[1.0, 2, 3]]))}).to_zarr(
        tmp_path / "start.zarr", encoding={"m": {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}}
    )
    place = str(tmp_path / "start.zarr" / "m")
    fit = ("fit", packed, "-k", 1, "--nan-policy", "omit", "--max-iter", 0, "--means-init", place)
    result = run(*fit, "--out", tmp_path / "m.npz")
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(GaussianMixture.load(tmp_path / "m.npz").means_, [[1, 2, 3]])
    (Path(place) / "c/0/0").unlink()
    result = run(*fit, "--out", tmp_path / "n.npz")
    assert (result.exit_code, "is not in the store" in result.stderr) == (4, True)
