"""The bar of a fit: on request alone, in a notebook or on a terminal, and it never goes back."""

from __future__ import annotations

import io
import re
import sys
from contextlib import suppress
from itertools import count
from typing import Any

import dask
import dask.array as da
import pytest

from daskgmm import GaussianMixture, watching
from daskgmm.display import ProgressBar, progress
from daskgmm.fit.events import Event, Listener, Progress
from tests.apart import K, rows_of
from tests.listeners import SEEDED, stop

X = da.from_array(rows_of(0, 3000), chunks=(500, 2))


class Screen(io.StringIO):
    """Standard error that is a terminal, or not."""

    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


def fit(bar: ProgressBar, model: GaussianMixture | None = None) -> GaussianMixture:
    model = GaussianMixture(K, random_state=0, tol=1e-9, max_iter=30) if model is None else model
    with watching(bar), dask.config.set(scheduler="synchronous"):
        model.fit(X)
    return model


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn at every event, not now and then."""
    monkeypatch.setattr(progress, "EVERY", 0.0)


@pytest.mark.usefixtures("always")
def test_in_a_notebook_it_is_one_output_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []

    def display(bar: Any, display_id: str) -> Any:
        class Handle:
            def update(self, bar: Any) -> None:
                shown[-1].append(bar._repr_html_())

        shown.append([bar._repr_html_()])
        return Handle()

    monkeypatch.setattr(progress, "_notebook", lambda: display)
    bar = ProgressBar()
    model = fit(bar)
    fit(bar)
    first, _ = shown  # an output for each fit
    told = f"<span>done: {model.n_iter_} iterations, {model.n_passes_} passes</span>"
    assert first[-1] == told
    assert any(text.startswith("<span>survey ") for text in first)
    passes = [text for text in first if text.startswith("<span>pass ")]
    values = [float(value) for text in passes for value in re.findall(r'value="(.*?)"', text)]
    assert values == sorted(values)
    assert "block 6/6" in passes[-1]
    assert "rows/s" in passes[-1]
    assert "&lt;" in passes[-1]  # the time left, which is no tag


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("tty", [True, False])
def test_elsewhere_it_is_a_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch, tty: bool) -> None:
    screen = Screen(tty)
    monkeypatch.setattr(sys, "stderr", screen)
    model = fit(ProgressBar())
    if not tty:
        assert screen.getvalue() == ""
        return
    lines = screen.getvalue().split("\r\x1b[K")
    assert lines[-1] == f"done: {model.n_iter_} iterations, {model.n_passes_} passes\n"
    assert max(map(len, lines)) < 80
    assert "\n" not in "".join(lines[:-1])


@pytest.mark.usefixtures("always")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_another_fit_under_the_same_bar_is_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    fit(ProgressBar())  # compiled by now
    clock = count()
    monkeypatch.setattr(progress, "perf_counter", lambda: float(next(clock)))
    bar = ProgressBar()

    def told(*more: Listener, model: GaussianMixture | None = None) -> list[str]:
        lines: list[str] = []

        def listen(event: Event) -> None:
            if isinstance(event, Progress):
                lines.append(bar._course.count.partition("change")[0])

        with watching(listen, *more), suppress(KeyboardInterrupt):
            fit(bar, model)
        return lines

    first, second = told(), told()
    assert "rows/s" in first[-1]
    assert second == first
    stopped = told(stop(SEEDED + 2))
    assert len(stopped) < len(first)
    assert told() == first
    warm = GaussianMixture(K, random_state=0, tol=0, max_iter=2, warm_start=True).fit(X)
    first, second = told(model=warm), told(model=warm)
    assert len(first) == 2 * 6
    assert second == first


@pytest.mark.usefixtures("always")
def test_on_a_terminal_it_never_takes_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "40")
    fit(ProgressBar())
    assert max(map(len, screen.getvalue().split("\r\x1b[K"))) == 39


def test_no_kernel_is_no_notebook() -> None:
    assert progress._notebook() is None
