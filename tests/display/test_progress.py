"""The bar of a fit: on request alone, in a notebook or on a terminal, and it never goes back."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import dask
import dask.array as da
import pytest

from daskgmm import GaussianMixture, watching
from daskgmm.display import ProgressBar, progress
from tests.apart import K, rows_of

X = da.from_array(rows_of(0, 3000), chunks=(500, 2))


class Screen(io.StringIO):
    """Standard error that is a terminal, or not."""

    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


def fit(bar: ProgressBar) -> GaussianMixture:
    model = GaussianMixture(K, random_state=0, tol=1e-9, max_iter=30)
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


def test_no_kernel_is_no_notebook() -> None:
    assert progress._notebook() is None
