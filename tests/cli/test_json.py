"""The page of the command line has every key that ``--json`` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text("utf-8")


def test_the_page_has_every_key(run: Callable[..., Result], data: str, model: str, tmp_path: Path) -> None:
    section = PAGE.partition("## What `--json` prints")[2].partition("\n## ")[0]
    known = {
        name
        for names in re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
        for name in names[1:-1].split("`, `")
    }
    place = {name: tmp_path / f"{name}.npz" for name in ("fit", "online", "posterior", "best", "more")}
    fit = (
        "fit",
        data,
        "-k",
        2,
        "--seed",
        0,
        "--max-iter",
        1,
        "--checkpoint",
        tmp_path / "c",
        "--out",
        place["fit"],
    )
    commands = [
        (*fit, "--background"),
        ("fit", data, "-k", 2, "--seed", 0, "--online", "--out", place["online"]),
        ("fit", data, "-k", 2, "--seed", 0, "--bayesian", "--max-iter", 1, "--out", place["posterior"]),
        ("update", place["online"], data, "--out", place["more"]),
        ("select", data, "-k", "1:2", "--seed", 0, "--max-iter", 1, "--out", place["best"]),
        ("predict", data, model, "--out", tmp_path / "labels"),
        ("score", data, model, "--icl", "--out", tmp_path / "densities"),
        ("plot", model, "--out", tmp_path / "model.png"),
        ("info", model),
        ("info", place["more"]),
    ]
    found: set[str] = set()
    for words in commands:
        result = run(*words, "--json")
        assert result.exit_code in (0, 3), result.stderr
        found |= json.loads(result.stdout).keys()
    assert found - known == set()
    assert known - found == {"beside", "dims", "last_log_likelihood", "n_rows_to_start", "status"}
    standing = json.loads(run("info", tmp_path / "c", "--json").stdout).keys()
    assert all(f"`{name}`" in section for name in standing)
