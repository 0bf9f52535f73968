"""Every check of the project, one session each: `nox -l` lists them, `nox -s lint` runs one.

Arguments after `--` go on to the tool: `nox -s tests-3.12 -- -k survey`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.sessions = ["lint", "types", "tests", "wheel"]
# Few machines have every Python. The workflow asks for one at a time, and there a missing one is an error.
nox.options.error_on_missing_interpreters = False

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)  # from the classifiers
EXTRAS = PYPROJECT["project"]["optional-dependencies"]

# Short forms of the benchmarks; None for what other scripts start. Left out, for they can only be long: most
# sections of `online`, which draw millions of rows, and `scaling model`, which fits eight million.
BENCHMARKS = {
    "accuracy": "--problems 10",
    "bayesian": "--rows 20000 --iterations 1 --kinds full",
    "compare": "--grid sklearn spark query-predict --cells 16,16 --kinds full --scale 0.05 --repeats 3",
    "deconvolution": "--rows 20000 --theirs 500",
    "machine": "--cells 16,16 --seconds 0.01 --size 512",
    "missing": "--short",
    "online": "published drift cost --seeds 1 --scale 0.01",
    "optima": "--problems g8-d2-L --rows 2000 --seeds 1 --restarts 1",
    "passes": "--problems g4-d8-M g4-d2-S --rows 2000 --most 300",
    "peers": None,
    "restarts": "--shape 20000,4,4 --n-init 3 --repeats 1",
    "scaling": "workers memory --rows 100000 --repeats 3",
    "scheduling": "--blocks 10 --repeats 1",
    "search": "--rows 20000 --most 3 --theirs 2000 --problem-rows 2000 --seeds 2 --curve-rows 2000",
    "storage": "--shape 20000,16,16 --chunk-mib 0.25 --repeats 1",
    "track": "--scale 0.05 --history {folder}/history.jsonl",
}
BENCHMARK_SECONDS = 300

# A command under a time limit, on every system: nox has none for its commands.
LIMITED = """
import subprocess, sys
try:
    sys.exit(subprocess.run(sys.argv[2:], timeout=float(sys.argv[1])).returncode)
except subprocess.TimeoutExpired:
    sys.exit(f"stopped after {sys.argv[1]} s")
"""


def declared(extra: str, *names: str) -> list[str]:
    """Requirements as an extra states them, so that each version stands in one place."""
    stated = {re.split(r"[<>=!~\[ ]", requirement)[0]: requirement for requirement in EXTRAS[extra]}
    return [stated[name] for name in names]


def readme_commands(session: nox.Session, extra: str) -> list[list[str]]:
    """The commands of README's line that installs an extra and goes on: what it says is what is checked."""
    begin = f'python -m pip install "{extra}" && python '
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    if not (found := [line for line in lines if line.startswith(begin)]):
        session.error(f"README.md has no line that begins with: {begin}")
    return [shlex.split(command) for command in found[0].split("&&")]


def run_readme(session: nox.Session, extra: str, *arguments: str) -> None:
    """Run them; the arguments go to the last one."""
    *before, last = readme_commands(session, extra)
    for command in before:
        session.run(*command)
    session.run(*last, *arguments)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, by the command that the README gives; and which of them take long."""
    run_readme(session, ".[test]", "--durations=60", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that take minutes or gigabytes."""
    session.install(".[test]")
    # Exit status 5: no test is marked slow, or none that was asked for.
    session.run("python", "-m", "pytest", "-m", "slow", "--timeout=1800", *session.posargs, success_codes=[0, 5])


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The tests of what meets other libraries, with the lowest versions that pyproject.toml allows."""
    session.install("uv")
    extras = ",".join(name for name in EXTRAS if name not in ("bench", "dev", "docs"))
    install = ("uv", "pip", "install", "--compile-bytecode", "--resolution", "lowest-direct")
    session.run(*install, f".[{extras}]")
    session.run("python", "-m", "pip", "check")
    # Inputs, schedulers, commands and files. The rest meets NumPy, SciPy and Numba alone, and takes as long again.
    # The estimators first: they compile the E-step, for which a test with a cluster has no time.
    estimators = [f"tests/estimators/test_{name}.py" for name in ("sklearn_contract", "inputs", "persistence")]
    elsewhere = [
        "tests/compute/sources",
        "tests/compute/test_engine.py",
        "tests/store/test_checkpoint.py",
        "tests/cli",
    ]
    chosen = session.posargs or [*estimators, *elsewhere]
    # Numba keeps compiled code beside the package, of one version at a time: leave the developer's alone.
    environment = {"NUMBA_CACHE_DIR": str(Path(session.create_tmp()).resolve() / "numba")}
    session.run("python", "-m", "pytest", *chosen, env=environment)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, the workflows against their schema, and the notes for the next release."""
    session.install(*declared("test", "ruff"), *declared("dev", "towncrier"), "check-jsonschema>=0.33")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    workflows = sorted(str(path) for path in Path(".github/workflows").glob("*.yml"))
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    forms = sorted(str(path) for path in Path(".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-issue-forms", *forms)
    session.run("towncrier", "build", "--draft", "--version", "next")
    kinds = "|".join(kind["directory"] for kind in PYPROJECT["tool"]["towncrier"]["type"])
    names = {path.name for path in Path("changelog.d").iterdir()} - {"README.md"}
    if strangers := sorted(name for name in names if not re.fullmatch(rf"\+[\w-]+\.({kinds})\.md", name)):
        session.error(f"changelog.d/: towncrier leaves these out, for their names: {strangers}")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict."""
    session.install(".[test]")
    session.run("python", "-m", "mypy", "--strict", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in docs/_build/html: every warning and dead link is an error, and nothing is fetched."""
    session.install(".[docs]")
    environment = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}  # nobody answers there
    environment["DASKGMM_EXAMPLES"] = os.environ.get("DASKGMM_EXAMPLES", "small")
    options = ("-W", "--keep-going", "-b", "html", *session.posargs)
    session.run("python", "-m", "sphinx", *options, "docs", "docs/_build/html", env=environment)
    session.run("python", "docs/links.py", "docs/_build/html")


@nox.session
def bench(session: nox.Session) -> None:
    """Each benchmark in its shortest form, under a time limit: do they still run? Names after `--` choose."""
    # Editable: the compiled E-step that lies beside the package serves here, too. Zarr's slow store needs pytest.
    session.install("--editable", ".", *declared("bench", "pytest"))
    scripts = {path.stem for path in Path("benchmarks").glob("*.py") if "__main__" in path.read_text("utf-8")}
    if scripts != set(BENCHMARKS):
        session.error(f"noxfile.py and benchmarks/ differ: {sorted(scripts ^ set(BENCHMARKS))}")
    folder = Path(session.create_tmp()).as_posix()
    for name in session.posargs or sorted(scripts):
        if (short := BENCHMARKS[name]) is None:
            continue
        script = ("python", f"benchmarks/{name}.py", *shlex.split(short.format(folder=folder)))
        session.log(shlex.join(script))
        limited = ("python", "-c", LIMITED, str(BENCHMARK_SECONDS))
        told = str(session.run(*limited, *script, silent=True, log=False))
        print(told, flush=True)
        if "fails: " in told:  # a library that stopped is an entry of a table there
            session.error(f"benchmarks/{name}.py: a library failed")


@nox.session
def quickstart(session: nox.Session) -> None:
    """The example, by the command that the README gives; its promise, and the figures that docs/ shows."""
    *before, example = readme_commands(session, ".[examples]")
    for command in before:
        session.run(*command)
    folder = Path(session.create_tmp())
    for threads in ("2", "8"):
        told = session.run(*example, "--output", str(folder), "--threads", threads, *session.posargs, silent=True)
        print(told, flush=True)
        (folder / "told.txt").write_text(str(told), encoding="utf-8")
        session.run("python", "examples/figures.py", "docs/quickstart.md", str(folder / "told.txt"))


@nox.session
def wheel(session: nox.Session) -> None:
    """Build wheel and sdist, look inside, install the wheel, start the commands; `-- FOLDER VERSION` keeps it."""
    session.install("build", "twine")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        session.run("python", "-m", "build", "--outdir", str(folder / "dist"))
        (built,), (source,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
        look_inside(session, built, source)
        session.run("twine", "check", "--strict", str(built), str(source))
        session.run("python", "-m", "venv", str(folder / "user"))
        programs = folder / "user" / ("Scripts" if os.name == "nt" else "bin")
        session.run(str(programs / "python"), "-m", "pip", "install", str(built), external=True)
        session.chdir(folder)  # away from the sources, which would be imported instead
        code = "import daskgmm; print(daskgmm.__file__); daskgmm.GaussianMixture()"
        for program, *arguments in (("python", "-c", code), ("daskgmm", "--version"), ("dask", "gmm", "--help")):
            session.run(str(programs / program), *arguments, external=True)
        session.chdir(ROOT)  # Windows removes no folder that is somebody's current one
        if session.posargs:
            release(session, *session.posargs, built, source)


def release(session: nox.Session, folder: str, version: str, *files: Path) -> None:
    """Keep what was built for a tag, if that names the version which is stated everywhere else."""
    stated = PYPROJECT["project"]["version"]
    if version != stated or f"## [{version}]" not in (ROOT / "CHANGELOG.md").read_text("utf-8"):
        session.error(f"the tag names {version}, pyproject.toml {stated}; CHANGELOG.md needs a heading for it")
    Path(folder).mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)


def look_inside(session: nox.Session, built: Path, source: Path) -> None:
    """The wheel holds the package alone, the sdist what pyproject.toml lists."""
    inside = {name.partition("/")[0] for name in zipfile.ZipFile(built).namelist()}
    if strangers := {name for name in inside if name != "daskgmm" and not name.endswith(".dist-info")}:
        session.error(f"the wheel has more than the package: {sorted(strangers)}")
    with tarfile.open(source) as archive:
        inside = {name.split("/")[1] for name in archive.getnames()}
    listed = {name.strip("/") for name in PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]}
    always = {"pyproject.toml", "PKG-INFO", "README.md", "LICENSE", ".gitignore"}
    if strangers := inside ^ (listed | always):
        session.error(f"the sdist and pyproject.toml differ: {sorted(strangers)}")
