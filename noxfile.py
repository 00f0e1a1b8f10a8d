"""Every check of the project; ``nox`` runs those that continuous integration runs."""

import shutil
import time
import zipfile
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2024.4"
nox.options.sessions = ["lint", "types", "tests", "docs", "build"]
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
# Not those about what starts in a nursery and what could do without async: interfaces decide both here.
FLAKE8_ASYNC = ["--enable=ASYNC1", "--disable=ASYNC114,ASYNC124,ASYNC128"]
PYTHONS = nox.project.python_versions(PYPROJECT)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, the slow ones and those against the JavaScript packages on Node included, with coverage."""
    session.install("-e", ".[test]")
    session.run(
        "pytest",
        *("-m", "slow or not slow"),
        "--cov",
        "--cov-report=term:skip-covered",
        *session.posargs,
        env={"TRIO_LEDGER_PLUGIN_REQUIRE_NODE": "1"},
    )


@nox.session
def oldest(session: nox.Session) -> None:
    """Run the tests with the oldest versions of what pyproject.toml asks for, but not those against Node."""
    wanted = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"]["cli"]]
    session.install("-e", ".[test]")
    # Afterwards: what the examples need does not go with all of these, and no test of theirs runs here.
    session.install(*(requirement.replace(">=", "==") for requirement in wanted))
    session.run("pytest", "-q", "-m", "not slow and not interop", *session.posargs)


@nox.session
def interop(session: nox.Session) -> None:
    """Run only the tests against the real JavaScript packages on Node; tests/interop/package.json names them."""
    session.install("-e", ".[test]")
    session.run(
        "pytest", "-m", "interop", "tests/interop", *session.posargs, env={"TRIO_LEDGER_PLUGIN_REQUIRE_NODE": "1"}
    )


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
def fuzz(session: nox.Session) -> None:
    """Try damaged inputs for so many seconds, given after ``--``, 60 by default: by mutation, and guided by coverage.

    Where atheris cannot be installed, all of the time goes into mutation, which the tests do as well.
    """
    session.install("-e", ".[test]")
    seconds = int(session.posargs[0]) if session.posargs else 60
    guided = True
    try:
        session.install("-e", ".[fuzz]")
    except CommandFailed:
        session.warn("atheris cannot be installed here, for this Python or this system: no coverage-guided fuzzing")
        guided = False
    found = Path(session.create_tmp()).resolve()
    with session.chdir("tests"):
        share = seconds // 3 if guided else seconds
        # A seed of each run's own: the tests try the same inputs each time.
        session.run("python", "-m", "fuzz.mutation", "--seconds", str(share), "--seed", str(time.time_ns()))
        for what in ("packets", "streams") if guided else ():
            session.run("python", "-m", "fuzz.coverage_guided", what, "--seconds", str(share), str(found / what))


@nox.session
def outcomes(session: nox.Session) -> None:
    """Make 200,000 calls with 5,000 faults, then a million with 25,000, and guess a token 10,000 times."""
    session.install("-e", ".[test]")
    with session.chdir("tests"):
        for calls, faults in ((200_000, 5_000), (1_000_000, 25_000)):
            session.run(
                "python", "-m", "faults.outcomes", "--calls", str(calls), "--faults", str(faults), *session.posargs
            )
    guesses = {"TRIO_LEDGER_PLUGIN_GUESSES": "10000"}
    session.run("pytest", "-m", "slow or not slow", "tests/test_hostile.py", "-k", "guesses", env=guesses)


@nox.session
def soak(session: nox.Session) -> None:
    """Load and faults for so many minutes, 60 by default, given after ``--``: memory, files and tasks must not grow."""
    session.install("-e", ".[test]")
    minutes = session.posargs[0] if session.posargs else "60"
    with session.chdir("tests"):
        session.run("python", "-m", "soak.soak", "--minutes", minutes, *session.posargs[1:])


@nox.session
def autobahn(session: nox.Session) -> None:
    """Run the Autobahn WebSocket test suite against both ends; a Python 2.7 can be given after ``--``.

    The suite runs on no other Python. An environment for it is made here, and nothing else of it is needed.
    """
    wanted = session.posargs[:1] or ["python2.7"]
    old = shutil.which(wanted[0])
    probe = ["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    said = session.run(old, *probe, external=True, silent=True, success_codes=range(256)) if old else ""
    if str(said).strip() != "2.7":
        session.error(f"{wanted[0]} is no Python 2.7 that works: the suite needs one; give its path after --")
    where = Path(session.create_tmp()).resolve()
    # The last virtualenv that makes environments for it.
    session.install("-e", ".", "virtualenv<20.22")
    session.run("virtualenv", "-q", "-p", str(old), str(where / "suite"))
    session.run(str(where / "suite/bin/pip"), "install", "-q", "autobahntestsuite", external=True)
    session.run("python", "tests/autobahn/run.py", str(where / "suite/bin/wstest"), str(where / "reports"))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install("-e", ".[docs,test]")
    session.run("sphinx-build", "-q", "-W", "-n", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session
def build(session: nox.Session) -> None:
    """Build wheel and sdist, and run the demo from each in a clean environment; the sdist brings its tests along.

    With ``wheel`` after ``--`` the sdist is only built.
    """
    session.install("build")
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    beside = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()} - {"trio_ledger_plugin"}
    if [name for name in beside if not name.endswith(".dist-info")]:
        session.error(f"the wheel has more than the package: {', '.join(sorted(beside))}")
    whole = session.posargs != ["wheel"]
    for archive, extra in ((wheel, "cli"), (sdist, "test")) if whole else ((wheel, "cli"),):
        session.run("python", "-m", "venv", "--clear", str(dist / "venv"))
        programs = dist / "venv" / "bin"
        session.run(str(programs / "pip"), "install", "-q", f"{archive}[{extra}]", external=True)
        # Not from here: Python would find the sources before what is installed.
        with session.chdir(dist):
            session.run(str(programs / "trio-ledger-plugin"), "demo", external=True)
    if not whole:
        return
    shutil.unpack_archive(sdist, dist)
    with session.chdir(dist / sdist.name.removesuffix(".tar.gz")):
        session.run(
            str(programs / "pytest"), "-q", "--collect-only", "-p", "no:cacheprovider", external=True, silent=True
        )
        session.run(str(programs / "pytest"), "-q", "tests/test_public_api.py", "tests/test_layers.py", external=True)
