"""Each script of the gallery runs in a small setting, and finds what its page says."""

from __future__ import annotations

import json
import os
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pictures import same_picture

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "examples" / "gallery"
DATA = ROOT / "tests" / "data"
BASELINES = Path(__file__).parent / "baselines"

pyplot = pytest.importorskip("matplotlib.pyplot")
Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Runs a script, in a small setting and a folder of its own; returns its names."""
    monkeypatch.setenv("DASKGMM_EXAMPLES", "small")
    monkeypatch.chdir(tmp_path)
    pyplot.switch_backend("agg")
    yield lambda name: runpy.run_path(str(GALLERY / f"{name}.py"), run_name="__main__")
    pyplot.close("all")


def check_figures(count: int, name: str | None = None) -> None:
    """There are so many, every axes with ticks says what it shows, and they are as they were."""
    figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
    assert len(figures) == count
    for axes in (axes for figure in figures for axes in figure.axes):
        assert axes.get_title() or axes.get_ylabel() or not axes.axison or not len(axes.get_xticks())
        if len(axes.get_xticks()) and len(axes.get_yticks()) and not axes.images:
            assert axes.get_xlabel() or axes.get_ylabel()
    for number, figure in enumerate(figures):
        if name is not None:
            same_picture(figure, BASELINES / f"{name}-{number}.png")


def test_old_faithful(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    shown, told = run("old_faithful"), capsys.readouterr().out
    np.testing.assert_array_equal(shown["X"], np.loadtxt(DATA / "faithful.csv", delimiter=",", skiprows=1))
    models = json.loads((DATA / "faithful_reference.json").read_text())["models"]
    (published,) = (m for m in models if (m["covariance_type"], m["n_components"]) == ("full", 2))
    assert f"BIC as mclust counts it  {published['published_bic_mclust_sign']}" in told
    order = np.argsort(shown["model"].weights_)
    np.testing.assert_allclose(shown["model"].means_[order], published["means"], rtol=1e-4)
    course = shown["models"][-1].lower_bounds_
    assert np.all(np.diff(course) > -1e-10)
    assert len(course) == max(shown["ITERATIONS"])
    assert shown["panels"][0, 1].get_title() == f"iteration 1: {course[1]:.4g} nats"
    check_figures(1, "old_faithful")


def test_photograph_colours(run: Run) -> None:
    shown = run("photograph_colours")
    assert shown["labels"].dims == ("y", "x")
    assert shown["labels"].shape == shown["photograph"].shape[:2]
    assert float(shown["certainty"].min()) >= 1 / 6
    # Sky above, trees below: the same component at both ends of the photograph would tell nothing.
    assert shown["painted"][0].mean() > shown["painted"][-1].mean() + 80
    check_figures(1, "photograph_colours")


def test_sky_survey(run: Run) -> None:
    shown = run("sky_survey")
    truth = [share for share, *_ in shown["POPULATIONS"].values()]
    np.testing.assert_allclose(shown["sky"], truth, atol=0.015)
    assert shown["plan"][3] > 10 * truth[3]
    assert not shown["path"].exists()
    check_figures(1, "sky_survey")


@pytest.mark.slow
def test_cytometry(run: Run) -> None:
    shown = run("cytometry")
    labels, population = shown["labels"], shown["population"]
    right = np.array(shown["nearest"])[population] == labels
    assert right.mean() > 0.99
    assert right[shown["saturated"]].all()
    assert right[population == 4].mean() > 0.9
    assert shown["model"].weights_[shown["nearest"][2]] < 0.13  # of 15 %: a third of them lay on the limit
    check_figures(1, "cytometry")


@pytest.mark.slow
def test_drifting_stream(run: Run) -> None:
    shown = run("drifting_stream")
    stopped, everlasting, forgets = (np.array(values) for values in shown["gaps"].values())
    third = len(stopped) // 3
    assert stopped[-third:].mean() > 3 * everlasting[-third:].mean() > 3 * forgets[-third:].mean()
    check_figures(1, "drifting_stream")


@pytest.mark.slow
def test_ocean_profiles(run: Run) -> None:
    shown = run("ocean_profiles")
    assert shown["chosen"] == 5
    assert shown["names"] == ["tropical", "subtropical", "inland sea", "subpolar", "polar"]
    labels = shown["labels"]
    assert set(labels.coords) == {"lat", "lon"}
    np.testing.assert_array_equal(labels == -1, shown["land"].transpose("lat", "lon"))
    check_figures(1, "ocean_profiles")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.name == "nt", reason="Windows knows no signal that asks a process to end")
def test_cluster_job(run: Run) -> None:  # its commands are subprocesses
    shown = run("cluster_job")
    assert shown["codes"] == [5, 0]
    assert shown["same"]
    (before, after) = ([i for job, i, _ in shown["reached"] if job == number] for number in (1, 2))
    assert after[0] == before[-1] + 1  # it did not begin anew
    assert all(process.poll() is not None for process in shown["workers"])
    check_figures(1)  # its seconds are another each time


@pytest.mark.slow
def test_anomalies(run: Run) -> None:
    shown = run("anomalies")
    alarms, faulty, by_one = shown["alarms"], shown["faulty"], shown["by_one"]
    assert alarms[faulty].all()
    assert alarms[~faulty].mean() < 0.003  # of one in a thousand
    assert by_one[faulty].mean() < 0.9
    check_figures(1, "anomalies")


@pytest.mark.slow
def test_missing_bands(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    shown, told = run("missing_bands"), capsys.readouterr().out
    assert shown["missing"][:, 0].sum() == 0  # what decides on J is there
    assert f"have all three\nmissing: g-r of {shown['missing'][:, 1].mean():.0%}" in told
    redness = {name: m.means_[shown["matched"](m)[1], 2] - 2.4 for name, m in shown["models"].items()}
    assert abs(redness["missing"]) < 0.03
    assert redness["omit"] < -0.3
    assert redness["column means"] < -1
    shares = shown["models"]["missing"].weights_[shown["matched"](shown["models"]["missing"])]
    np.testing.assert_allclose(shares, shown["shares"], atol=0.015)
    assert shown["errors"]["missing"] < 0.75 * shown["errors"]["omit"] < 0.5 * shown["errors"]["column means"]
    truth, guesses, draws = shown["spread"]
    assert abs(draws - truth) < 0.02 < truth - guesses
    assert not shown["path"].exists()
    check_figures(1, "missing_bands")


@pytest.mark.slow
def test_deconvolved_stars(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    shown, told = run("deconvolved_stars"), capsys.readouterr().out
    clean, models = shown["clean"], shown["models"]
    plain, behind, online = (models[name].score(clean) for name in ("plain", "with noise", "with noise, online"))
    assert behind > plain + 0.5
    assert behind > online > plain + 0.3
    assert f"{'with noise':20}  {behind:19.2f}" in told
    # Two peaks where there are two tracks, each about as wide as it is; the plain fit has one.
    peaks = {name: (np.diff(np.sign(np.diff(cut))) < 0).sum() for name, cut in shown["cuts"].items()}
    assert (peaks["plain"], peaks["with noise"]) == (1, 2)
    below, above = (
        shown["track"](shown["cuts"]["with noise"], side) for side in (~shown["middle"], shown["middle"])
    )
    assert float(below.split(" ± ")[1]) < 0.12 > float(above.split(" ± ")[1])
    check_figures(1, "deconvolved_stars")


@pytest.mark.slow
def test_adapted_voices(run: Run) -> None:
    shown = run("adapted_voices")
    learnt, mistaken, (rows, background, theirs, adapted) = shown["learnt"], shown["mistaken"], shown["near"].T
    assert np.all(adapted < 1.02 * np.minimum(background, theirs))
    assert theirs[0] > background[0]
    assert rows[-1] > 32
    assert theirs[-1] < background[-1]
    assert np.all(np.array(learnt["adapted"]) > learnt["plain mixture"])
    assert learnt["adapted"][3] > learnt["plain mixture"][-1]  # of 1,000 rows, and of 10,000
    assert shown["unadapted"] < learnt["adapted"][0] < learnt["adapted"][-1] < shown["truth"]
    assert mistaken["adapted"][2] < 0.02 < mistaken["plain mixture"][2]
    check_figures(1, "adapted_voices")


def test_power_curve(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    shown, told = run("power_curve"), capsys.readouterr().out
    np.testing.assert_allclose(shown["by_one"], shown["by_line"], rtol=1e-5)  # reg_covar makes it no closer
    assert "dask.array<" in told  # nothing was computed yet
    for k, off in ((1, 0.3), (20, 0.0)):
        mean, _ = shown["told"][k]
        assert off <= np.sqrt(np.mean((mean - shown["true_mean"]) ** 2)) < off + 0.1
    one, many = (np.array(shown["spread"][k]) for k in (1, 20))
    np.testing.assert_allclose(many, 1, atol=0.08)
    assert abs(one[-1] - 1) < 0.02  # over all rows, and only there
    assert one[:-1].min() < 0.5
    assert one[:-1].max() > 2
    np.testing.assert_allclose(shown["within"][20], 0.9, atol=0.02)
    assert abs(shown["half"] - 0.15) < 0.02
    check_figures(1, "power_curve")


@pytest.mark.slow
def test_image_patches(run: Run) -> None:
    shown = run("image_patches")
    assert list(shown["gains"]) == [1, 4]
    assert 6 < shown["gains"][4] > shown["gains"][1] + 1
    # What was put together from patches is what they were cut from.
    image = shown["truths"][0]
    covering = shown["put_together"](np.ones_like(shown["cut"](image)), image.shape)
    np.testing.assert_allclose(shown["put_together"](shown["cut"](image), image.shape), image * covering)
    check_figures(2, "image_patches")


@pytest.mark.parametrize("script", sorted(GALLERY.glob("*.py")), ids=lambda path: path.stem)
def test_each_script_is_a_page(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    title, line = text.split("\n")[1:3]
    assert line == "=" * len(title)
    assert len(re.findall(r"^# %%$", text, flags=re.MULTILINE)) >= 3
    assert f"def test_{script.stem}(" in Path(__file__).read_text(encoding="utf-8")
