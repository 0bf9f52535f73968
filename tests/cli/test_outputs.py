"""An output is whole or absent, and what the user did not name is never touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import fsspec
import numpy as np
import pytest
import zarr
from click.testing import Result

from daskgmm import GaussianMixture, MiniBatchGaussianMixture, watching
from daskgmm.fit.events import Event, Reached
from daskgmm.store import aside
from daskgmm.store.lock import locked
from tests.cli.test_process import start
from tests.forks import Fork
from tests.store.bucket import KEPT

Run = Callable[..., Result]

BUCKET = f"{KEPT}://daskgmm-outputs"
LABELS = {"shape": (7,), "chunks": (4,), "dtype": "int64"}


def tree(folder: Path) -> dict[str, object]:
    """Every file, folder and link, with what it holds."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


def bucket() -> dict[str, bytes]:
    fs = fsspec.filesystem("memory")
    return {name: fs.cat_file(name) for name in fs.find("/daskgmm-outputs")}


class World:
    """A folder in which things lie that a command must not touch, and a bucket in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.x = np.random.default_rng(0).normal(size=(60, 2))
        self.array("x.zarr", shape=(60, 2), chunks=(20, 2), dtype="float64")[...] = self.x
        MiniBatchGaussianMixture(1, max_iter=1, random_state=0).fit(self.x[:40]).save(folder / "online.npz")
        GaussianMixture(1, max_iter=0, random_state=0).fit(self.x).save(folder / "m.npz")
        np.save(folder / "w.npy", np.ones(60))
        np.save(folder / "means.npy", np.zeros((1, 2)))

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def array(self, name: str, **layout: Any) -> Any:
        """A Zarr array in the folder, or at a URL."""
        return zarr.create_array(name if "://" in name else str(self / name), **layout)

    def file(self, name: str, text: str = "mine") -> None:
        (self / name).parent.mkdir(exist_ok=True)
        (self / name).write_text(text)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield World(folder)
    fs = fsspec.filesystem("memory")
    if fs.exists("/daskgmm-outputs"):
        fs.rm("/daskgmm-outputs", recursive=True)


def predict(out: object, *words: str, data: str = "x.zarr", model: str = "m.npz") -> list[str]:
    return ["predict", data, model, "--out", str(out), *words]


def fit(out: object, *words: str, data: str = "x.zarr") -> list[str]:
    return ["fit", data, "-k", "1", "--seed", "0", "--out", str(out), *words]


def foreign(world: World, url: str) -> None:
    fsspec.filesystem(KEPT).pipe_file(f"{url}/part-0.parquet", b"others'")


def linked(world: World) -> None:
    (world / "link").symlink_to(".")
    (world / "x-link.zarr").symlink_to("x.zarr")


def mixed(world: World) -> None:
    world.array("out.zarr", **LABELS)
    world.file("out.zarr/notes.txt")


def with_folder(world: World) -> None:
    world.array("out.zarr", **LABELS)
    (world / "out.zarr/plots").mkdir()


def with_link(world: World) -> None:
    world.array("out.zarr", **LABELS)
    (world / "out.zarr/c").symlink_to(world / "x.zarr")


def pointed(world: World) -> None:
    world.array("there.zarr", **LABELS)
    (world / "out.zarr").symlink_to("there.zarr")


def partial(world: World) -> None:
    world.file("m2.npz.partial")
    world.file("victim")
    (world / "out.npz.partial").symlink_to("victim")
    (world / "out.zarr.partial").symlink_to("victim")
    for name in ("out.zarr.lock", "out.npz.lock", "c.ck.lock", "c.ck.partial", "out.npz.old"):
        world.file(name)


def array_in_bucket(world: World, **attributes: Any) -> None:
    world.array(f"{BUCKET}/a", **LABELS, attributes=attributes)


def array_and_others(world: World) -> None:
    array_in_bucket(world)
    foreign(world, f"{BUCKET}/a")


def same_file(world: World) -> None:
    os.link(world / "w.npy", world / "v.npy")


def wild(world: World) -> None:
    for name in ("r1.zarr", "r?.zarr"):
        world.array(f"{BUCKET}/{name}", **LABELS)[...] = 1


def numbers(world: World) -> None:
    world.array("out.zarr", **LABELS)[...] = 1
    (world / "out.zarr/2024/11").mkdir(parents=True)
    world.file("out.zarr/2024/11/30")


def zipped(world: World) -> None:
    shutil.make_archive("x", "zip", "x.zarr")


Prepare = Callable[[World], Any]
ANY: Prepare = lambda world: None  # noqa: E731
IN_BUCKET: Prepare = lambda world: foreign(world, f"{BUCKET}/results")  # noqa: E731

# What is there, the command, its exit code, what it says, and what it may write or replace.
CASES: dict[str, tuple[Prepare, list[str], int, str, set[str]]] = {
    "prefix of others": (IN_BUCKET, predict(f"{BUCKET}/results"), 2, "is in the way", set()),
    "prefix, overwritten": (IN_BUCKET, predict(f"{BUCKET}/results", "--overwrite"), 2, "is in the way", set()),
    "bucket": (IN_BUCKET, predict(BUCKET, "--overwrite"), 2, "is in the way", set()),
    "object": (IN_BUCKET, predict(f"{BUCKET}/results/part-0.parquet", "--overwrite"), 2, "in the way", set()),
    "array": (array_in_bucket, predict(f"{BUCKET}/a"), 2, "--overwrite replaces it", set()),
    "array, overwritten": (array_in_bucket, predict(f"{BUCKET}/a", "--overwrite"), 0, "", {"a"}),
    "array and others": (
        array_and_others,
        predict(f"{BUCKET}/a", "--overwrite"),
        2,
        "parquet is in the way",
        set(),
    ),
    "unfinished": (
        lambda world: array_in_bucket(world, complete=False, writer="daskgmm predict"),
        predict(f"{BUCKET}/a"),
        0,
        "",
        {"a"},
    ),
    "another's, unfinished": (
        lambda world: array_in_bucket(world, complete=False),
        predict(f"{BUCKET}/a"),
        2,
        "--overwrite",
        set(),
    ),
    "wildcards": (wild, predict(f"{BUCKET}/r?.zarr", "--overwrite"), 0, "", {"r?.zarr"}),
    "memory": (ANY, predict("memory://daskgmm-outputs/a"), 2, "would be gone with this process", set()),
    "model: checkpoint in memory": (ANY, fit("n.npz", "--checkpoint", "memory://c"), 2, "would be gone", set()),
    "no such system": (ANY, predict("nowhere://x"), 2, "cannot be reached", set()),
    "local://, folder": (lambda w: w.file("mine/a"), predict("local://{here}/mine"), 2, "in the way", set()),
    "local://, model": (ANY, predict("local://{here}/m.npz", "--overwrite"), 2, "overlaps", set()),
    "local://, data": (ANY, predict("local://{here}/x.zarr", "--overwrite"), 2, "overlaps", set()),
    "file://, data": (ANY, predict("file://{here}/x.zarr", "--overwrite"), 2, "overlaps", set()),
    "cache": (lambda w: w.file("mine/a"), predict("simplecache::file://{here}/mine"), 2, "is cached", set()),
    "data in a cache": (
        ANY,
        predict("x.zarr", "--overwrite", data="simplecache::file://{here}/x.zarr"),
        2,
        "overlaps",
        set(),
    ),
    "archive of the data": (
        zipped,
        predict("x.zip", "--overwrite", data="zip://::file://{here}/x.zip"),
        2,
        "overlaps",
        set(),
    ),
    "model: archive of the data": (
        zipped,
        fit("x.zip", "--overwrite", data="zip://::file://{here}/x.zip"),
        2,
        "overlaps",
        set(),
    ),
    "link to data": (linked, predict("x-link.zarr", "--overwrite"), 2, "overlaps", set()),
    "data behind a link": (linked, predict("x.zarr", "--overwrite", data="link/x.zarr"), 2, "overlaps", set()),
    "another format": (
        ANY,
        predict("labels.npy"),
        2,
        "a Zarr array, which is no .npy file",
        set(),
    ),
    "in data": (ANY, predict("x.zarr/labels"), 2, "overlaps", set()),
    "around data": (ANY, predict(".", "--overwrite"), 2, "overlaps", set()),
    "folder": (lambda w: w.file("mine/a"), predict("mine", "--overwrite"), 2, "in the way", set()),
    "empty folder": (lambda w: (w / "mine").mkdir(), predict("mine", "--overwrite"), 2, "in the way", set()),
    "file": (lambda w: w.file("a"), predict("a", "--overwrite"), 2, "in the way", set()),
    "array, local": (lambda w: w.array("out.zarr", **LABELS), predict("out.zarr"), 2, "--overwrite", set()),
    "array, replaced": (
        lambda w: w.array("out.zarr", **LABELS),
        predict("out.zarr", "--overwrite"),
        0,
        "",
        {"out.zarr"},
    ),
    "notes in the array": (mixed, predict("out.zarr", "--overwrite"), 2, "notes.txt is in the way", set()),
    "folder in the array": (with_folder, predict("out.zarr", "--overwrite"), 2, "plots is in the way", set()),
    "numbers in the array": (numbers, predict("out.zarr", "--overwrite"), 2, "2024/11/30 is in the way", set()),
    "link in the array": (with_link, predict("out.zarr", "--overwrite"), 2, "in the way", set()),
    "link to an array": (pointed, predict("out.zarr", "--overwrite"), 0, "", {"there.zarr"}),
    "link to nothing": (lambda w: (w / "l").symlink_to("gone"), predict("l"), 2, "in the way", set()),
    "names like ours": (partial, predict("out.zarr"), 0, "", {"out.zarr"}),
    "no folder": (ANY, predict("gone/out.zarr"), 2, "no folder", set()),
    "file for a folder": (ANY, predict("w.npy/out.zarr"), 2, "no folder", set()),
    "not writable": (ANY, predict("/proc/out.zarr"), 2, "cannot be written", set()),
    "long name": (ANY, predict("o" * 256), 2, "cannot be written: File name too long", set()),
    "damaged array": (
        lambda w: w.file("out.zarr/zarr.json", "{"),
        predict("out.zarr", "--overwrite"),
        2,
        "or a damaged one, and stays. Name another place, or remove it yourself.",
        set(),
    ),
    "longest name": (ANY, predict("o" * 255), 0, "", {"o" * 255}),
    "no name": (ANY, predict(""), 2, "needs a name", set()),
    "model: weights": (ANY, fit("w.npy", "--overwrite", "--weights", "w.npy"), 2, "overlaps", set()),
    "model: weights, local://": (
        ANY,
        fit("w.npy", "--overwrite", "--weights", "local://{here}/w.npy"),
        2,
        "overlaps",
        set(),
    ),
    "model: another name of weights": (
        same_file,
        fit("v.npy", "--overwrite", "--weights", "w.npy"),
        2,
        "overlaps",
        set(),
    ),
    "model: start": (ANY, fit("means.npy", "--overwrite", "--means-init", "means.npy"), 2, "overlaps", set()),
    "model: in data": (ANY, fit("x.zarr/zarr.json", "--overwrite"), 2, "overlaps", set()),
    "model: checkpoint": (ANY, fit("n.npz", "--checkpoint", "./n.npz"), 2, "overlaps with the output", set()),
    "checkpoint in data": (ANY, fit("n.npz", "--checkpoint", "x.zarr/c.ck"), 2, "overlaps", set()),
    "model: there": (ANY, fit("m.npz"), 2, "--overwrite", set()),
    "model: replaced": (ANY, fit("m.npz", "--overwrite"), 0, "", {"m.npz"}),
    "model: device": (ANY, fit("/dev/null", "--overwrite"), 2, "no regular file", set()),
    "model: folder": (lambda w: w.file("mine/a"), fit("mine", "--overwrite"), 2, "is a directory", set()),
    "model: URL": (ANY, fit(f"{BUCKET}/m.npz"), 2, "not to a URL", set()),
    "model: no name": (ANY, fit(""), 2, "needs a name", set()),
    "model: long name": (ANY, fit("m" * 252 + ".npz"), 2, "File name too long", set()),
    "model: no folder": (ANY, fit("gone/m.npz"), 2, "no folder", set()),
    "model: names like ours": (partial, fit("out.npz", "--checkpoint", "c.ck"), 0, "", {"out.npz", "c.ck"}),
    "update: data": (
        ANY,
        ["update", "online.npz", "x.zarr", "--out", "x.zarr/m.npz", "--overwrite"],
        2,
        "overlaps",
        set(),
    ),
    "update: weights": (
        ANY,
        ["update", "online.npz", "x.zarr", "--weights", "w.npy", "--out", "w.npy", "--overwrite"],
        2,
        "overlaps",
        set(),
    ),
    "update: itself": (
        ANY,
        ["update", "online.npz", "x.zarr", "--out", "online.npz", "--overwrite"],
        0,
        "",
        {"online.npz"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_user_did_not_name_is_never_touched(run: Run, world: World, case: str) -> None:
    prepare, words, code, told, written = CASES[case]
    prepare(world)
    before, stored = tree(world.folder), bucket()
    result = run(*(word.format(here=world.folder) for word in words))
    assert (result.exit_code, told in result.stderr) == (code, True), result.stderr
    after, objects = tree(world.folder), bucket()

    def others(found: dict[str, Any]) -> dict[str, Any]:
        top = {"daskgmm-outputs"}
        return {n: v for n, v in found.items() if not written & (set(n.strip("/").split("/")[:2]) - top)}

    assert others(after) == others(before)
    assert others(objects) == others(stored)
    if code == 0:
        assert (after, objects) != (before, stored)


@pytest.mark.parametrize("command", [predict("out.zarr"), fit("out.npz")])
def test_a_full_disk_is_told_before_any_work(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    before, usage = tree(world.folder), shutil.disk_usage(world.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    monkeypatch.setattr(GaussianMixture, "fit", None)
    monkeypatch.setattr(GaussianMixture, "predict", None)
    result = run(*command)
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert tree(world.folder) == before


def test_an_output_that_came_meanwhile_stays(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world / "before.npz").write_bytes((world / "m.npz").read_bytes())
    predicted: Any = GaussianMixture.predict

    def slow(model: GaussianMixture, x: Any, **how: Any) -> Any:
        world.file("out.zarr/notes.txt")
        return predicted(model, x, **how)

    monkeypatch.setattr(GaussianMixture, "predict", slow)
    result = run(*predict("out.zarr"))
    assert result.exit_code == 2
    assert "in the way" in result.stderr
    assert sorted(path.name for path in (world / "out.zarr").iterdir()) == ["notes.txt"]


def test_a_model_that_came_meanwhile_stays(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = GaussianMixture.fit

    def slow(model: GaussianMixture, *arguments: Any, **how: Any) -> Any:
        world.file("n.npz")
        return fitted(model, *arguments, **how)

    monkeypatch.setattr(GaussianMixture, "fit", slow)
    result = run(*fit("n.npz"))
    assert result.exit_code == 2
    assert "the model is in n.interrupted.npz" in result.stderr
    assert (world / "n.npz").read_text() == "mine"
    assert GaussianMixture.load("n.interrupted.npz").n_iter_ > 0


def test_a_lock_that_cannot_be_taken_is_none(world: World) -> None:
    lock = Path(aside.beside(str(world / "out.zarr"), "lock"))
    lock.mkdir()
    with pytest.raises(OSError, match="Is a directory"), locked(world / "out.zarr", print):
        pass
    assert lock.is_dir()


# A process that is killed, by itself, around the step that puts its output in place.
SUICIDE = """
import os, signal, sys
from daskgmm.cli import main
from daskgmm.store import aside
_, kind, *words = sys.argv
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if kind == "before the swap":
    aside._put_folder = die
elif kind == "after the swap":
    def remove(path, then=aside._remove):
        if os.path.isdir(path):
            die()
        then(path)
    aside._remove = remove
else:
    aside._swapped = lambda *_: False
    rename, calls = os.rename, []
    def second(a, b):
        calls.append(a)
        die() if len(calls) == (3 if kind == "after the renames" else 2) else rename(a, b)
    os.rename = second
main(words)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["before the swap", "after the swap", "between the renames", "after the renames"])
def test_a_kill_around_the_renaming_leaves_the_old_or_the_new(run: Run, world: World, kind: str) -> None:
    world.array("out.zarr", **LABELS)[...] = 3
    before = tree(world.folder)
    words = predict("out.zarr", "--overwrite")
    with Fork(SUICIDE, kind, *words) as process:
        assert process.wait(60) == -signal.SIGKILL
    if kind != "between the renames":  # only where the system cannot swap names is there such a moment
        assert zarr.open_array("out.zarr", mode="r").shape in ((7,), (60,))
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    assert zarr.open_array("out.zarr", mode="r").attrs["complete"] is True
    assert {n for n in tree(world.folder) if "out.zarr" not in n} == {n for n in before if "out.zarr" not in n}
    assert [name for name in os.listdir() if "daskgmm" in name] == []


def test_what_a_killed_writer_moved_away_comes_back(run: Run, world: World) -> None:
    world.array("out.zarr", **LABELS)[...] = 3
    old = Path(aside.beside(str(world / "out.zarr"), f"{'0' * 32}.old"))
    (world / "out.zarr").rename(old)
    (world / f"out.zarr.daskgmm-{'1' * 32}.partial").mkdir()
    refused = run(*predict("out.zarr"))
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    np.testing.assert_array_equal(zarr.open_array("out.zarr", mode="r")[:], 3)
    assert [name for name in os.listdir() if "daskgmm" in name] == []


def interrupted(run: Run, *words: str, after: int = 2) -> Result:
    def stop(event: Event) -> None:
        if isinstance(event, Reached) and event.state.n_iter >= after and event.state.runs:
            raise KeyboardInterrupt

    with watching(stop):
        return run(*words)


def test_an_interrupt_keeps_the_best_model_so_far(run: Run, world: World) -> None:
    words = ["fit", "x.zarr", "-k", "2", "--seed", "0", "--tol", "0", "--out", "n.npz"]
    for name in ("n.interrupted.npz", "n.interrupted-2.npz"):
        result = interrupted(run, *words)
        assert result.exit_code == 5
        assert f"The best model so far is in {name}" in result.stderr
        assert "--checkpoint" in result.stderr
        assert GaussianMixture.load(name).n_iter_ == 2
    assert not (world / "n.npz").exists()
    assert run("fit", "x.zarr", "--warm-start", name, "--out", "n.npz", "--max-iter", "3").exit_code in (0, 3)
    with_checkpoint = interrupted(run, *words, "--overwrite", "--checkpoint", "c.ck")
    assert "The same command goes on from c.ck" in with_checkpoint.stderr
    assert not (world / "n.interrupted-3.npz").exists()
    early = interrupted(run, *words, "--overwrite", after=0)
    assert "best model" not in early.stderr
    assert "--checkpoint" in early.stderr


@pytest.mark.timeout(120)
def test_a_second_writer_is_refused(run: Run, world: World) -> None:
    short = dask.config.set({"daskgmm.checkpoint-lease": "0.6 s"})  # within which its holder puts the lease anew
    with short, locked(world / "out.zarr", print), locked(world / "n.npz", print), locked(f"{BUCKET}/a", print):
        for words in (predict("out.zarr"), fit("n.npz"), predict(f"{BUCKET}/a")):
            result = run(*words)
            assert result.exit_code == 5
            assert "is writing the output" in result.stderr
    assert run(*predict("out.zarr")).exit_code == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sixty_kills_leave_the_old_or_the_new_output(run: Run, world: World) -> None:
    random = np.random.default_rng(0)
    x = np.repeat(world.x, 2000, axis=0)
    zarr.create_array("big.zarr", shape=x.shape, chunks=(2000, 2), dtype="float64")[...] = x
    words = {
        "out.zarr": predict("out.zarr", "--overwrite", data="big.zarr"),
        "n.npz": [*fit("n.npz", "--overwrite", "--max-iter", "30", "--tol", "0", data="big.zarr")],
    }
    for command in words.values():
        assert run(*command).exit_code in (0, 3)
    before = set(os.listdir())
    killed = 0
    for number in range(60):
        out = ["out.zarr", "n.npz"][number % 2]
        with start(*words[out]) as process:
            try:
                process.wait(random.uniform(0.0, 0.7))
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
        if out == "out.zarr":
            labels = zarr.open_array(out, mode="r")
            assert labels.attrs["complete"] is True
            assert labels.nchunks_initialized == labels.nchunks
        else:
            GaussianMixture.load(out)
        if number % 10 > 7:
            assert run(*words[out]).exit_code in (0, 3)
    for command in words.values():
        assert run(*command).exit_code in (0, 3)
    assert set(os.listdir()) == before
    assert killed >= 40, killed
