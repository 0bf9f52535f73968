"""Two writers of one place leave the whole output of one of them, whoever looks meanwhile."""

import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from daskgmm import GaussianMixture
from daskgmm.cli import main
from tests.forks import METHOD

CONTEXT: Any = multiprocessing.get_context(METHOD)
LIMIT = 60.0  # seconds that any of them waits


def _save(place: str, number: int, rounds: int, barrier: Barrier) -> None:
    model = GaussianMixture.from_parameters(np.ones(1), np.full((1, 40), float(number)), np.eye(40)[None])
    for _ in range(rounds):
        barrier.wait(LIMIT)
        model.save(place)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rounds", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_two_saves_to_one_path_leave_a_whole_model(tmp_path: Path, rounds: int) -> None:
    place, barrier = str(tmp_path / "m.npz"), CONTEXT.Barrier(2)
    savers = [CONTEXT.Process(target=_save, args=(place, number, rounds, barrier)) for number in (1, 2)]
    for saver in savers:
        saver.start()
    seen = {1.0: 0, 2.0: 0}
    while any(saver.is_alive() for saver in savers):
        if os.path.exists(place):
            means = GaussianMixture.load(place).means_
            assert (means == means[0, 0]).all()
            seen[means[0, 0]] += 1
    assert [saver.exitcode for saver in savers] == [0, 0]
    assert min(seen.values()) > 0
    assert os.listdir(tmp_path) == ["m.npz"]


def predict(
    words: tuple[str, ...], data: str, out: str, model: str, rounds: int, barrier: Any, results: Any
) -> None:
    """Write to a new place in each round, at the same moment as others that wait at the barrier."""
    for number in range(rounds):
        barrier.wait(LIMIT)
        result = CliRunner().invoke(main, ["predict", data, model, "--out", f"{out}-{number}", *words])
        results.put((number, model, result.exit_code, result.stderr))


def assert_one_whole_output(
    folder: Path, out: str, rounds: int, options: Any = None, words: tuple[str, ...] = ()
) -> None:
    """Two commands at once on each of some places: one of them writes all of it, and the other says why not."""
    x = np.random.default_rng(0).normal(size=(3000, 2))
    data = str(folder / "x.zarr")
    zarr.create_array(data, shape=x.shape, chunks=(100, 2), dtype="float64")[...] = x
    models = {}
    for number in (0, 1):  # every label of one is the other's complement
        means = np.array([[-1.0, 0.0], [1.0, 0.0]])[:: 1 - 2 * number]
        model = GaussianMixture.from_parameters(np.full(2, 0.5), means, np.stack([np.eye(2)] * 2))
        models[str(folder / f"{number}.npz")] = model.predict(x)
        model.save(folder / f"{number}.npz")
    barrier, results = CONTEXT.Barrier(2), CONTEXT.Queue()
    shared = rounds, barrier, results
    writers = [CONTEXT.Process(target=predict, args=(words, data, out, model, *shared)) for model in models]
    for writer in writers:
        writer.start()
    ended: dict[int, dict[str, int]] = {}
    for _ in range(2 * rounds):
        number, file, code, told = results.get(timeout=LIMIT)
        # The loser meets the writer at work, or what it has left.
        assert code in (0, 2, 5), told
        ended.setdefault(number, {})[file] = code
    for writer in writers:
        writer.join(LIMIT)
    for number, codes in ended.items():
        (winner,) = [file for file, code in codes.items() if code == 0]
        written = zarr.open_array(f"{out}-{number}", mode="r", storage_options=options)
        assert written.attrs["complete"] is True
        np.testing.assert_array_equal(written[:], models[winner])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_two_predictions_to_one_path_leave_one_whole_array(tmp_path: Path, rounds: int) -> None:
    assert_one_whole_output(tmp_path, str(tmp_path / "labels"), rounds)
    left = {path.name for path in tmp_path.iterdir()} - {f"labels-{number}" for number in range(rounds)}
    assert left == {"x.zarr", "0.npz", "1.npz"}
