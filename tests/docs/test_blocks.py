"""Every code block of the documentation runs, and prints what the page shows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import dask
import matplotlib
import pytest
from matplotlib import pyplot

from tests.docs import blocks

ROOT = blocks.ROOT
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if "```" in p.read_text("utf-8"))]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder; what a page sets in the process is put back."""
    root, ours = logging.getLogger(), logging.getLogger("daskgmm")
    handlers, level, settings = root.handlers[:], ours.level, deepcopy(dask.config.config)
    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context({"backend": "agg"}):
        yield
    pyplot.close("all")
    root.handlers[:] = handlers
    ours.setLevel(level)
    dask.config.config.clear()
    dask.config.config.update(settings)


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(page: Path) -> None:
    blocks.run(page.read_text("utf-8"), page.name)


@pytest.mark.parametrize(
    "page",
    [
        "```python\nprint(1)\n```\nprints\n```text\n2\n```",
        "```python\nprint(1)\n```\n```text\n1\n...2\n```",
        "```python\n1 / 0\n```",
        "<!-- setup\n1 / 0\n-->",
        "```sh\ndaskgmm info no-such-file.npz\n```",
        "```sh\nrm -r everything\n```",
        "```sh\npython examples/no_such.py\n```",
    ],
)
def test_what_is_wrong_is_found(page: str) -> None:
    with pytest.raises((AssertionError, ZeroDivisionError)):
        blocks.run(page, "page")


def test_what_is_right_is_not() -> None:
    blocks.run(
        "<!-- setup\nx = 7\n-->\n```python\nprint(x, 'of many')\n```\nprints\n```text\n7 ... many\n```", "page"
    )
    blocks.run("```sh\n# what is there\nCOLUMNS=80 daskgmm --version && python -m pip install .\n```", "page")
