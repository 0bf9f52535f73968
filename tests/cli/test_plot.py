"""`plot` draws what the displays draw, to a file that is whole or absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from matplotlib import pyplot

from daskgmm import GaussianMixture

Run = Callable[..., Result]


@pytest.mark.parametrize("ending", ["png", "svg"])
@pytest.mark.parametrize("words", [(), ("--features", "0,2"), ("--kind", "convergence"), ("--dark",)])
def test_pictures(run: Run, data: str, model: str, tmp_path: Path, ending: str, words: tuple[str, ...]) -> None:
    out = tmp_path / f"out.{ending}"
    rows = [] if "convergence" in words else [data]
    result = run("plot", model, *rows, "--out", out, "--json", *words)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["out"] == str(out)
    if ending == "svg":
        assert out.read_text().startswith("<?xml")
        return
    found = pyplot.imread(out)
    assert found.shape[1] >= 800
    dark = bool(found[0, 0, :3].max() < 0.1)
    assert dark == ("--dark" in words)
    assert found[:, :, :3].std() > 0.02
    assert pyplot.get_fignums() == []


def test_without_rows(run: Run, model: str, tmp_path: Path) -> None:
    assert run("plot", model, "--out", tmp_path / "out.png").exit_code == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--out", "{}/out.txt"), 2, "one of .png, .svg, .pdf"),
        (("--out", "{}/out.png", "--features", "depth"), 2, "They are: feature 0, feature 1, feature 2"),
        (("{data}", "--out", "{}/out.png", "--kind", "convergence"), 2, "takes neither DATA nor --features"),
        (("nowhere.zarr", "--out", "{}/out.png"), 4, "nowhere.zarr"),
        (("--out", "{}/out.png", "--scheduler-timeout", "3s"), 2, "need a cluster"),
    ],
)
def test_refusals(
    run: Run, data: str, model: str, tmp_path: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    before = set(tmp_path.iterdir())
    result = run("plot", model, *(word.format(tmp_path, data=data) for word in words))
    assert (result.exit_code, result.stdout) == (code, "")
    assert told in result.stderr
    assert set(tmp_path.iterdir()) == before


def test_a_picture_is_replaced_only_where_that_is_asked(run: Run, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    out.write_text("mine")
    assert run("plot", model, "--out", out).exit_code == 2
    assert out.read_text() == "mine"
    assert run("plot", model, "--out", out, "--overwrite").exit_code == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    given = GaussianMixture.from_parameters([1.0], [[0.0]], [1.0], "spherical")
    given.save(tmp_path / "given.npz")
    result = run("plot", tmp_path / "given.npz", "--kind", "convergence", "--out", tmp_path / "new.png")
    assert (result.exit_code, "made no iteration" in result.stderr) == (2, True)
