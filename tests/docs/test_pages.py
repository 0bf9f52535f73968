"""What the documentation names is there: functions, files, pages, and every public name in the reference."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import daskgmm
from daskgmm import errors
from tests.docs.blocks import ROOT, blocks

DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text("utf-8") for path in [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]}
REPOSITORY, SITE = "https://github.com/daskgmm/daskgmm", "https://daskgmm.github.io/daskgmm/"
NAMED = re.compile(r"`(daskgmm(?:\.\w+)+)[`(]")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SETTINGS = {"memory-limit", "timeouts", "checkpoint"}  # of Dask's configuration, below "daskgmm."


def found(name: str) -> Any:
    """The object of a dotted name; an error where there is none."""
    for length in range(name.count(".") + 1, 0, -1):
        parts = name.split(".")
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:  # an attribute
            continue
        return reduce(getattr, parts[length:], module)
    raise ImportError(name)


@pytest.mark.parametrize("page", PAGES)
def test_every_function_that_a_page_names_exists(page: str) -> None:
    for name in sorted(set(NAMED.findall(PAGES[page]))):
        if name.split(".")[1] not in SETTINGS:
            found(name)


def test_a_name_that_is_gone_is_found() -> None:
    for name in ("daskgmm.model.mixture.no_such", "daskgmm.GaussianMixture.no_such"):
        with pytest.raises(AttributeError):
            found(name)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in LINK.findall(PAGES[page]):
        if link.startswith(f"{REPOSITORY}/blob/main/"):
            assert (ROOT / link.removeprefix(f"{REPOSITORY}/blob/main/").partition("#")[0]).exists(), link
        elif link.startswith(SITE):
            name = link.removeprefix(SITE).partition("#")[0] or "index.html"
            assert name.endswith(".html"), link
            assert (DOCS / name).with_suffix(".md").exists(), link
        elif "://" not in link and page != "README.md":
            target = link.partition("#")[0]
            if target.startswith("gallery/"):  # a page that is made of a script
                target = (Path("../examples") / target).with_suffix(".py").as_posix()
            assert not target or (DOCS / target).exists(), link


# What creates a file or store, and refuses where there is one.
MAKES = re.compile(r'''(?:--out|--table) (\S+)(?!.*--overwrite)|(?:to_zarr|zarr\.create_\w+)\("([^"]+)"''')


def test_pages_go_together_in_one_folder() -> None:
    made = [
        (page, "".join(found))
        for page, text in PAGES.items()
        for block in blocks(text, page)
        if block.kind in ("python", "sh")
        for found in MAKES.findall(block.text)
    ]
    places = [place for _, place in made]
    assert [(page, place) for page, place in made if places.count(place) > 1] == []
    assert len(made) > 20


def public() -> set[str]:
    """Names that users import."""
    failures = {name for name, _ in inspect.getmembers(errors, inspect.isclass)}
    return failures | set(daskgmm.display.__all__) | set(daskgmm.__all__) - {"display"}


def test_the_reference_has_every_public_name() -> None:
    entries = set(re.findall(r"^   ([\w.]+)$", PAGES["reference.md"], re.MULTILINE))
    assert not public() - entries, "docs/reference.md lacks these"


def test_one_table_has_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    rows = re.findall(r"^\| `([\w-]+)` \|", PAGES["start.md"], re.MULTILINE)
    assert sorted(rows) == sorted(project["optional-dependencies"])
