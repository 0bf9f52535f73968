"""Names are data: whatever they hold, nothing that is printed steers a terminal or passes for another line."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import Result

from daskgmm import GaussianMixture, watching
from daskgmm.errors import DataError, printable
from daskgmm.store import files
from tests.listeners import stop

Run = Callable[..., Result]

# What a terminal would do at the name, or a reader believe.
NAMES = {
    "title": "a\x1b]0;owned\x07b",
    "clipboard": "a\x1b]52;c;cm0\x07b",
    "clear screen": "a\x1b[2Jb",
    "C1": "a\x9b2Jb",
    "DEL": "a\x7fb",
    "carriage return": "a\rconverged yes",
    "line break": "a\nError: b",
    "line separators": "a\u2028b\x85c",
    "right to left": "a\u202egnp.exe",
    "isolate": "a\u2066b",
    "no character": "a\udc9bb",
}
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(name: str) -> str:
    """A name as it may be printed."""
    found = printable(name)
    assert not STEERS.search(found)
    assert "\n" not in found
    return found


def check(printed: str, name: str) -> None:
    """The name is there, and nothing that a terminal obeys; no line of it passes for another message."""
    assert not STEERS.search(printed)
    assert len(re.findall(r"^Error", printed, re.MULTILINE)) <= 1
    assert all(part in printed for part in re.split(r"\\n|\\r", shown(name)))


def rows(folder: Path) -> None:
    array = zarr.create_array(str(folder / "x.zarr"), shape=(40, 2), dtype="f8")
    array[:] = np.random.default_rng(0).normal(size=(40, 2))


def in_a_group(run: Run, folder: Path, name: str) -> Result:
    group = zarr.open_group(str(folder / "group.zarr"), mode="w")
    group.create_array(name.replace("/", "|"), shape=(4, 2), dtype="f8")
    return run("fit", folder / "group.zarr", "-k", 2, "--out", folder / "out.npz")


def in_a_path(run: Run, folder: Path, name: str) -> Result:
    return run("fit", folder / name, "-k", 2, "--out", folder / "out.npz")


def in_an_output(run: Run, folder: Path, name: str) -> Result:
    rows(folder)
    return run("fit", folder / "x.zarr", "-k", 2, "--out", folder / name / "out.npz")


def in_an_option(run: Run, folder: Path, name: str) -> Result:
    return run("fit", folder, "-k", 2, "--out", folder / "out.npz", f"--{name}")


def in_a_warning(run: Run, folder: Path, name: str) -> Result:
    def warn(_: Any) -> None:
        warnings.warn(f"The rows of {name} are odd.", stacklevel=1)

    rows(folder)
    with watching(warn):
        return run("fit", folder / "x.zarr", "-k", 1, "--out", folder / "out.npz")


def in_a_traceback(run: Run, folder: Path, name: str) -> Result:
    rows(folder)
    odd = type("Odd", (Exception,), {"__str__": lambda self: name})
    with watching(stop(1, odd)):
        return run("fit", folder / "x.zarr", "-k", 1, "--out", folder / "out.npz", "--verbose")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "where", [in_a_group, in_a_path, in_an_output, in_an_option, in_a_warning, in_a_traceback]
)
def test_messages(run: Run, tmp_path: Path, where: Callable[..., Result], name: str) -> None:
    if where is in_a_group and name == "no character":
        pytest.skip("Zarr's metadata are UTF-8")
    result = where(run, tmp_path, NAMES[name])
    assert result.exit_code in ((0,) if where is in_a_warning else (1, 2, 4)), result.stderr
    check(result.stderr, NAMES[name])


def model(folder: Path, name: str) -> Path:
    x = np.random.default_rng(0).normal(size=(40, 1))
    found = GaussianMixture(random_state=0).fit(x)
    named = GaussianMixture.from_parameters(found.weights_, found.means_, found.covariances_, feature_names=[name])
    named.save(folder / "m.npz")
    return folder / "m.npz"


def checkpoint(folder: Path, name: str) -> Path:
    place = folder / "c"
    GaussianMixture(checkpoint=place, random_state=0).fit(np.random.default_rng(0).normal(size=(40, 1)))
    header, arrays = files.read(place, lambda header: True)
    identity = {**header["identity"], name: 1, "X's dtype": name}
    kept = {name: header[name] for name in ("format", "version")}
    files.save(place, {**kept, "identity": identity}, files.value_of(header, arrays))
    return place


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [model, checkpoint])
def test_results(run: Run, tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    place = make(tmp_path, NAMES[name])
    table = run("info", place)
    assert table.exit_code == 0, table.stderr
    check(table.stdout, NAMES[name])
    told = run("info", place, "--json").stdout
    assert not STEERS.search(told)
    assert json.dumps(NAMES[name]) in told


def test_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "a\x1b[2J\rb"
    for _ in range(2):
        with caplog.at_level(logging.INFO, "daskgmm"):
            GaussianMixture(checkpoint=tmp_path / name, random_state=0).fit(np.arange(9.0)[:, None])
    assert f"from {tmp_path}/{shown(name)};" in caplog.text


def test_errors_in_python() -> None:
    assert str(DataError("a\x1b[2J\n  b")) == "a\\x1b[2J\n  b"


@pytest.mark.parametrize("text", ["", "plain", "naïve Größe", "日本語 🙂", "C:\\x1b"])
def test_what_is_printable_stays(text: str) -> None:
    assert printable(text) == text
