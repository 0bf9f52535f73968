"""Paths and URLs lead to Zarr arrays, from any directory, or to a clear refusal."""

from pathlib import Path

import numpy as np
import pytest

from daskgmm.compute.rows import as_rows
from daskgmm.errors import DataError
from tests.compute.arrays import VALUES, joined, write


@pytest.mark.parametrize("place", ["nothing.zarr", "file://{}/nothing.zarr", "memory://nothing"])
def test_an_unknown_path(place: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no Zarr array at .*nothing"):
        as_rows(place.format(tmp_path))


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"There is no Zarr array at {tmp_path}"):
        as_rows(tmp_path)


@pytest.mark.parametrize("place", ["gopher://host/x.zarr", "http://[::1/x.zarr"])
def test_what_cannot_be_opened_is_said_so(place: str) -> None:
    with pytest.raises(DataError, match="cannot be opened") as caught:
        as_rows(place)
    assert caught.value.__cause__ is not None


def test_a_relative_path_holds_in_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.zarr", VALUES, (4, 2))
    monkeypatch.chdir(tmp_path)
    rows = as_rows("x.zarr")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(joined(rows), VALUES)
