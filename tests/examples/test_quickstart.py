"""The quickstart keeps its promise or says so, and stale figures of its page are found."""

import re
from pathlib import Path

import pytest

from examples.figures import Figures, differences
from examples.quickstart import check_promise

PAGE = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text(encoding="utf-8")


def test_the_page_agrees_with_itself() -> None:
    shown = Figures.of(PAGE, "quickstart.md")
    assert sorted(shown.iterations) == list(range(1, len(shown.iterations) + 1))
    assert sorted(shown.held_out) == [1, 16]
    assert differences(shown, shown) == []


@pytest.mark.parametrize(
    ("line", "now", "told"),
    [
        (r"^( +5 +\d+)\.\d{4}$", r"\1.0000", "iteration 5: shown"),
        (r"^ +2 +\d+\.\d{4}\n", "", "iteration 2: shown"),
        (r"^( +1 component\(s\) +)\d+", r"\g<1>80", "components: 1: shown"),
        (r"^(peak above idle +)\d+", r"\g<1>137", "peak above idle, now: 137"),
        (r"^(size of the data +)\d+", r"\g<1>999", "size of the data: shown"),
    ],
)
def test_each_figure_that_is_stale_is_named(line: str, now: str, told: str) -> None:
    changed, count = re.subn(line, now, PAGE, flags=re.MULTILINE)
    assert count == 1
    (found,) = differences(Figures.of(PAGE, "quickstart.md"), Figures.of(changed, "now"))
    assert told in found


def test_rounding_is_no_difference() -> None:
    shown = Figures.of(PAGE, "quickstart.md")
    near = {n: value + 0.009 for n, value in shown.iterations.items()}
    assert differences(shown, shown._replace(iterations=near)) == []


@pytest.mark.parametrize("text", ["", PAGE + PAGE])
def test_a_text_without_the_figures_of_one_run_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="told does not have the figures of one run"):
        Figures.of(text, "told")


@pytest.mark.parametrize("above", [136, 200])
def test_a_peak_that_is_not_below_the_data_is_an_error(above: int) -> None:
    check_promise(135, 136)
    with pytest.raises(SystemExit, match="not below"):
        check_promise(above * 10**6, 136 * 10**6)
