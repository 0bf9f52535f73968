"""Outputs, checkpoints and leases on a server that speaks the S3 protocol, conditional PUTs included."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import fsspec
import numpy as np
import pytest
import zarr
from click.testing import Result

from daskgmm import GaussianMixture, watching
from daskgmm.errors import CheckpointError, InUseError
from daskgmm.store.lock import Lease, locked
from tests.store.s3 import serving
from tests.store.test_two_writers import assert_one_whole_output

Run = Callable[..., Result]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, Any]]:
    with serving() as found:
        yield found


@pytest.fixture
def words(options: dict[str, Any]) -> list[str]:
    """The options as the command line has them."""
    return [word for name, value in options.items() for word in ("--storage-option", f"{name}={_text(value)}")]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.fixture
def store(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file system; a checkpoint's URL has no options, and finds the server by fsspec's configuration."""
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    fs = fsspec.filesystem("s3", **options)
    yield fs
    fs.invalidate_cache()
    if fs.exists("bucket/here"):
        fs.rm("bucket/here", recursive=True)


def keys(fs: Any) -> set[str]:
    fs.invalidate_cache()
    return {name.removeprefix("bucket/here/") for name in fs.find("bucket/here")}


def test_an_array_is_written_replaced_and_complete_last(
    run: Run,
    data: str,
    model: str,
    fitted: GaussianMixture,
    values: Any,
    store: Any,
    options: Any,
    words: list[str],
) -> None:
    url = "s3://bucket/here/labels.zarr"
    store.pipe_file("bucket/here/labels.zarr.notes", b"mine")
    for more in ((), ("--overwrite",), ("--overwrite", "--proba")):
        result = run("predict", data, model, "--out", url, *words, *more)
        assert result.exit_code == 0, result.stderr
        written = zarr.open_array(url, mode="r", storage_options=options)
        expected = fitted.predict_proba(values) if "--proba" in more else fitted.predict(values)
        np.testing.assert_array_equal(written[:], expected)
        assert written.attrs["complete"] is True
    assert store.cat_file("bucket/here/labels.zarr.notes") == b"mine"
    assert [name for name in keys(store) if "lock" in name] == []
    refused = run("predict", data, model, "--out", url, *words)
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (2, True)


def test_a_prefix_of_others_stays(run: Run, data: str, model: str, store: Any, words: list[str]) -> None:
    for name in ("a/part-0.parquet", "b/zarr.json", "b/c/0", "b/table.csv"):
        store.pipe_file(f"bucket/here/{name}", b"theirs")
    before = keys(store)
    for name in ("a", "a/part-0.parquet", "b", "."):
        for more in ((), ("--overwrite",)):
            result = run("predict", data, model, "--out", f"s3://bucket/here/{name}".rstrip("/."), *words, *more)
            assert (result.exit_code, "in the way" in result.stderr) == (2, True), result.stderr
    assert keys(store) == before


def test_a_failure_removes_what_it_wrote_and_nothing_else(
    run: Run, write: Any, values: Any, model: str, store: Any, words: list[str]
) -> None:
    bad = values.copy()
    bad[640, 0] = np.inf
    store.pipe_file("bucket/here/mine", b"")
    result = run(
        "predict", write("bad.zarr", bad), model, "--out", "s3://bucket/here/out", *words, "--block-size", 1
    )
    assert result.exit_code == 4
    assert keys(store) == {"mine"}


def test_a_conditional_put_has_one_winner(store: Any) -> None:
    def begin(number: int) -> bool:
        try:
            store.pipe_file("bucket/here/lock", str(number).encode(), mode="create")
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(begin, range(8))) == 1


def test_a_lease_has_one_holder_and_is_gone_at_the_end(store: Any) -> None:
    with locked("s3://bucket/here/c.ck", print) as check:
        check()
        assert keys(store) == {"c.ck.daskgmm-lock"}
        with pytest.raises(InUseError):
            # The holder puts the object anew three times within its lease, of 0.6 s here.
            Lease(store, "bucket/here/c.ck", "c.ck").__enter__()
    assert keys(store) == set()


@pytest.fixture(autouse=True)
def short_lease() -> Iterator[None]:
    with dask.config.set({"daskgmm.checkpoint-lease": "0.6 s"}):
        yield


def test_a_fit_goes_on_from_its_checkpoint(store: Any, values: Any) -> None:
    url = "s3://bucket/here/c.ck"

    def model(k: int = 3, checkpoint: str | None = url) -> GaussianMixture:
        return GaussianMixture(k, random_state=0, tol=10, max_iter=5, checkpoint=checkpoint)

    def stop(event: Any) -> None:
        if getattr(getattr(event, "state", None), "n_passes", 0) == 1:
            raise KeyboardInterrupt

    with watching(stop), pytest.raises(KeyboardInterrupt):
        model().fit(values)
    assert keys(store) == {"c.ck"}
    np.testing.assert_array_equal(model().fit(values).means_, model(checkpoint=None).fit(values).means_)
    with pytest.raises(CheckpointError, match="another fit"):
        model(2).fit(values)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_two_predictions_to_one_url_leave_one_whole_array(
    store: Any, options: Any, words: list[str], tmp_path: Path, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_DASKGMM__CHECKPOINT_LEASE", "2 s")  # of the processes that are started
    assert_one_whole_output(tmp_path, "s3://bucket/here/labels", rounds, options, tuple(words))
    assert {name.split("/")[0] for name in keys(store)} == {f"labels-{number}" for number in range(rounds)}
