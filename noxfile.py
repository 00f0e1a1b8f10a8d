"""Every check of the project; ``nox`` runs those that continuous integration runs."""

import re
from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.sessions = ["lint", "types", "tests", "docs", "build"]
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
# Not those about what starts in a nursery and what could do without async: interfaces decide both here.
FLAKE8_ASYNC = ["--enable=ASYNC1", "--disable=ASYNC114,ASYNC124,ASYNC128"]
PYTHONS = nox.project.python_versions(PYPROJECT)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, those against the JavaScript packages on Node included, with coverage."""
    session.install("-e", ".[test]")
    session.run(
        "pytest",
        "--cov",
        "--cov-report=term:skip-covered",
        *session.posargs,
        env={"TRIO_LEDGER_PLUGIN_REQUIRE_NODE": "1"},
    )


@nox.session
def interop(session: nox.Session) -> None:
    """Run only the tests against the real JavaScript packages on Node; tests/interop/package.json names them."""
    session.install("-e", ".[test]")
    session.run("pytest", "tests/interop", *session.posargs, env={"TRIO_LEDGER_PLUGIN_REQUIRE_NODE": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and Trio's pitfalls."""
    session.install("ruff==0.17.6", "flake8-async>=25")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("flake8-async", *FLAKE8_ASYNC, *(str(path) for path in Path("trio_ledger_plugin").rglob("*.py")))


@nox.session
def types(session: nox.Session) -> None:
    """Check the types, and that every public name has complete ones."""
    session.install("-e", ".[test]", "mypy>=2.4", "pyright==1.1.414", "nox")
    session.run("mypy")
    session.run("pyright", "--verifytypes", "trio_ledger_plugin", "--ignoreexternal")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against the JavaScript packages on Node, at full size; give options of ``bench`` after ``--``."""
    session.install("-e", ".[cli]")
    with session.chdir("tests/interop"):
        session.run("npm", "ci", "--silent", external=True)
    where = Path(session.create_tmp())
    files = ["--plot", str(where / "rates.svg"), "--save", str(where / "rates.json")]
    node = ["--node", "tests/bench/btp_bench.js"]
    session.run("trio-ledger-plugin", "bench", "--rounds", "5", *node, *files, *session.posargs)
    session.run("python", "tests/bench/imports.py")
    session.run("python", "tests/bench/idle.py")
    session.run("python", "tests/bench/flood.py")
    session.run("python", "tests/bench/accounts.py", "--node", "--save", str(where / "accounts.json"))
    session.run("python", "tests/bench/money.py", "--save", str(where / "money.json"))
    session.log(f"the plot and the JSON are in {where}")


@nox.session
def crash(session: nox.Session) -> None:
    """Kill the ends of accounts a thousand times and compare what they say; give ``--kills`` and more after ``--``."""
    session.install("-e", ".")
    session.run("python", "tests/crash/harness.py", "--kills", "1000", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install("-e", ".[docs,cli]")
    session.run("sphinx-build", "-W", "-n", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session
def build(session: nox.Session) -> None:
    """Build wheel and sdist, and run the demo from each in a clean environment."""
    session.install("build")
    dist = Path(session.create_tmp()) / "dist"
    session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    version = re.escape(PYPROJECT["project"]["version"])
    for archive in sorted(path for path in dist.iterdir() if re.search(rf"-{version}[-.]", path.name)):
        session.run("python", "-m", "venv", "--clear", str(dist / "venv"))
        python = str(dist / "venv" / "bin" / "python")
        session.run(python, "-m", "pip", "install", "-q", f"{archive}[cli]", external=True)
        session.run(python, "-m", "trio_ledger_plugin", "demo", external=True)
