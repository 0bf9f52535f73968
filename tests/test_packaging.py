"""What is published agrees with itself: versions and requirements are the same wherever they are stated."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
RECIPE: dict[str, Any] = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text("utf-8"))
OTHER_NAMES = {"dask[array]": "dask-core"}  # for conda


def test_the_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert RECIPE["context"]["version"] == citation["version"] == PROJECT["version"]


def test_the_conda_recipe_has_the_requirements() -> None:
    stated = {"python": PROJECT["requires-python"]}
    for requirement in PROJECT["dependencies"]:
        found = re.fullmatch(r"([\w\-\[\]]+)(.*)", requirement)
        assert found
        stated[OTHER_NAMES.get(found[1], found[1])] = found[2]
    assert dict(line.split(" ") for line in RECIPE["requirements"]["run"]) == stated


def test_the_readme_has_no_link_that_a_package_index_cannot_follow() -> None:
    links = re.findall(r"\]\(([^)\s]+)", (ROOT / "README.md").read_text("utf-8"))
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 110
