"""Pictures that are compared with what they were."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TOLERANCE = 0.02  # root mean square of all pixels, whose colours go from 0 to 1


def same_picture(figure: Any, baseline: Path) -> None:
    """Compare a figure with a file, but for its text, which fonts draw differently.

    To accept a change, delete the file and run again.
    """
    from matplotlib import pyplot

    for axes in figure.axes:
        axes.set_axis_off()
        axes.set_title("")
    texts = [text for axes in figure.axes for text in [*axes.texts, axes.get_legend()]]
    for text in filter(None, [*texts, *figure.texts, *figure.legends]):
        text.set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, dpi=50)
    if not baseline.exists():
        baseline.parent.mkdir(exist_ok=True)
        baseline.write_bytes(file.getvalue())
        pytest.fail(f"There was no {baseline.name}; now there is one.")
    file.seek(0)
    old, new = (pyplot.imread(place)[:, :, :3] for place in (baseline, file))
    assert old.shape == new.shape
    assert np.sqrt(np.mean((old - new) ** 2)) < TOLERANCE
