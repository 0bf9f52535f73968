"""The code of a page of the documentation, run in order as its reader would.

    python -m tests.docs.blocks docs/start.md README.md

writes what these pages print now into them, where they show something else.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner
from markdown_it import MarkdownIt

from daskgmm.cli import main

ROOT = Path(__file__).parents[2]
SETUP = "<!-- setup\n"  # an HTML comment with Python that the reader need not see
PLOT = ".. plot::"  # Python that stands by itself; its figure comes below it
# Programs that are not run here: packages, schedulers, and scripts that have tests of their own.
ELSEWHERE = {"python", "pip", "conda", "dask", "sbatch", "kubectl", "source"}


@dataclass(frozen=True)
class Block:
    """One that is run ("setup", "python", "sh"), or what the one before it prints ("text")."""

    kind: str
    text: str
    name: str  # of the page
    line: int  # that it begins in, from 1

    @property
    def place(self) -> str:
        return f"{self.name}, line {self.line}"


def blocks(text: str, name: str) -> Iterator[Block]:
    """Those of a page; blocks in other languages are none of ours."""
    for token in MarkdownIt().parse(text):
        line = (token.map or [0])[0] + 1
        if token.type == "html_block" and token.content.startswith(SETUP):
            yield Block("setup", token.content.removeprefix(SETUP).partition("-->")[0], name, line)
        elif token.type == "fence" and token.content.startswith(PLOT):
            _, _, code = token.content.partition("\n\n")
            yield Block("plot", textwrap.dedent(code), name, line)
        elif token.type == "fence" and (kind := token.info.strip()) in ("python", "sh", "text"):
            yield Block(kind, token.content, name, line)


def printed(text: str, name: str) -> Iterator[tuple[Block, str]]:
    """Run a page in the current folder, its Python in one namespace: what it shows, and what is printed there."""
    names: dict[str, object] = {"__name__": "__main__"}
    told = ""
    for block in blocks(text, name):
        match block.kind:
            case "text":
                yield block, told
            case "sh":
                told = "".join(shell(line, block.place) for line in lines(block.text))
            case "plot":
                exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})
            case _:
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(block.text, block.place, "exec"), names)
                told = out.getvalue()


def run(text: str, name: str) -> None:
    """Run a page: what it shows is what is printed."""
    for block, told in printed(text, name):
        assert shows(block.text, told), f"{block.place} shows\n{block.text}\nand got\n{told}"


def refresh(path: Path) -> None:
    """Run a page, and write what it prints now where it shows something else."""
    text = path.read_text("utf-8")
    old = text.splitlines()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        found = list(printed(text, path.name))
    for block, told in reversed(found):
        if not shows(block.text, told):
            old[block.line : block.line + block.text.count("\n")] = map(str.rstrip, told.strip("\n").splitlines())
    path.write_text("\n".join(old) + "\n", "utf-8")


def shows(shown: str, printed: str) -> bool:
    """Whether a text is what was printed, but for spaces at the ends of lines; ``...`` stands for anything."""
    wanted, got = ("\n".join(map(str.rstrip, text.strip().splitlines())) for text in (shown, printed))
    return re.fullmatch(re.escape(wanted).replace(r"\.\.\.", ".*"), got, re.DOTALL) is not None


def lines(script: str) -> list[list[str]]:
    """The words of each command of a shell script; ``\\`` continues a line, ``&&`` ends a command."""
    commands = re.split(r"\n|&&", script.replace("\\\n", " "))
    return [words for command in commands if (words := shlex.split(command, comments=True))]


def shell(words: list[str], place: str) -> str:
    """What a command prints: one of ours, run in this process. Of others the files that they name must exist."""
    environment = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    program, *arguments = words[len(environment) :]
    if program == "daskgmm":
        result = CliRunner().invoke(main, arguments, env=environment)
        assert result.exit_code == 0, f"{place}: {shlex.join(words)} ends with\n{result.output}"
        return result.stdout
    assert program in ELSEWHERE, f"{place}: nobody runs {program}"
    for word in arguments:
        if word.startswith(("examples/", "benchmarks/")):
            assert (ROOT / word).exists(), f"{place} names {word}"
    return ""


if __name__ == "__main__":
    for page in sys.argv[1:]:
        refresh(Path(page).resolve())
