"""Scripts of the gallery as notebooks, which sphinx-gallery makes of them and a kernel, a subprocess, runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
notebook_of = pytest.importorskip("sphinx_gallery.notebook")

GALLERY = Path(__file__).parents[2] / "examples" / "gallery"

# What a reader adds: the bar of a fit, and a model.
MORE = """
import numpy as np
from daskgmm import GaussianMixture, display, watching
with watching(display.ProgressBar()):
    again = GaussianMixture(2, random_state=0).fit(np.random.default_rng(0).normal(size=(500, 2)))
again
"""


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("old_faithful", "BIC as mclust counts it  -2322.192"),
        pytest.param("photograph_colours", "labels have the dimensions ('y', 'x')", marks=pytest.mark.slow),
    ],
)
def test_it_runs_as_a_notebook(name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASKGMM_EXAMPLES", "small")
    (tmp_path / f"{name}.py").write_bytes((GALLERY / f"{name}.py").read_bytes())
    notebook_of.python_to_jupyter_cli([str(tmp_path / f"{name}.py")])
    notebook = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(MORE))
    assert {cell.cell_type for cell in notebook.cells} == {"code", "markdown"}
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert told in "".join(output.text for output in outputs(notebook) if output.output_type == "stream")
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    bar, table = (output["data"]["text/html"] for output in notebook.cells[-1].outputs)
    assert bar.startswith("<span>done: ")
    assert "<b>model GaussianMixture</b>" in table
