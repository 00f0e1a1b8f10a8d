"""All checks of the project; without arguments ``nox`` runs the ones that continuous integration runs."""

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
# Interfaces decide what is started in a nursery and what is async, so the rules about those are disabled.
FLAKE8_ASYNC = ["--enable=ASYNC1", "--disable=ASYNC114,ASYNC124,ASYNC128"]
PYTHONS = nox.project.python_versions(PYPROJECT)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run all tests with coverage, including the slow ones and the ones against the JavaScript packages on Node."""
    session.install("-e", ".[test,browser,docs]")
    session.run(
        "pytest",
        *("-m", "slow or not slow"),
        "--cov",
        "--cov-report=term:skip-covered",
        *session.posargs,
        env={f"TRIO_LEDGER_PLUGIN_REQUIRE_{what}": "1" for what in ("NODE", "POSTGRES", "CHROMIUM")},
    )


@nox.session
def oldest(session: nox.Session) -> None:
    """Run the tests, except those against Node, with the oldest dependencies that pyproject.toml allows."""
    wanted = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"]["cli"]]
    session.install("-e", ".[test]")
    # Last, because some of these versions conflict with what the examples need; the examples are not tested here.
    session.install(*(requirement.replace(">=", "==") for requirement in wanted))
    session.run("pytest", "-q", "-m", "not slow and not interop", *session.posargs)


@nox.session
def interop(session: nox.Session) -> None:
    """Run only the tests against the JavaScript packages on Node that tests/interop/package.json names."""
    session.install("-e", ".[test]")
    session.run(
        "pytest", "-m", "interop", "tests/interop", *session.posargs, env={"TRIO_LEDGER_PLUGIN_REQUIRE_NODE": "1"}
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, prose and common mistakes with Trio."""
    session.install("-e", ".[test]", "ruff==0.17.6", "flake8-async>=25")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("flake8-async", *FLAKE8_ASYNC, *(str(path) for path in Path("trio_ledger_plugin").rglob("*.py")))
    session.run("pytest", "-q", "tests/test_prose.py")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types, those of the documentation's programs too, and that every public name has complete types."""
    session.install("-e", ".[test]", "mypy>=2.4", "pyright==1.1.414", "nox")
    session.run("mypy")
    session.run("pytest", "-q", "-m", "slow", "tests/test_page_types.py")
    session.run("pyright", "--verifytypes", "trio_ledger_plugin", "--ignoreexternal")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against the JavaScript packages on Node, at full size; ``bench`` gets the options after ``--``."""
    session.install("-e", ".[admin,cli,postgres,speed,stream]")
    with session.chdir("tests/interop"):
        session.run("npm", "ci", "--silent", external=True)
    where = Path(session.create_tmp())
    files = ["--plot", str(where / "rates.svg"), "--save", str(where / "rates.json")]
    node = ["--node", "tests/bench/btp_bench.js"]
    session.run("trio-ledger-plugin", "bench", "--rounds", "5", *node, *files, *session.posargs)
    session.run("python", "tests/bench/imports.py")
    session.run("python", "tests/bench/idle.py")
    session.run("python", "tests/bench/flood.py")
    session.run("python", "tests/bench/neighbours.py")
    session.run("python", "tests/bench/admin.py")
    session.run("python", "tests/bench/admin.py", "--accounts", "10000")
    session.run("python", "tests/bench/accounts.py", "--node", "--save", str(where / "accounts.json"))
    session.run("python", "tests/bench/accounts.py", "--logins")
    session.run("python", "tests/bench/http.py", "--save", str(where / "http.json"))
    session.run("python", "tests/bench/money.py", "--save", str(where / "money.json"))
    session.run("python", "tests/bench/history.py")
    session.run("python", "tests/bench/postgres.py")
    session.run("python", "tests/bench/stream.py")
    session.run("python", "tests/bench/stream.py", "--memory", "1000000")
    session.run("python", "tests/bench/congestion.py", "--plot", str(where / "congestion.svg"))
    session.log(f"the plots and the JSON are in {where}")


@nox.session
def crash(session: nox.Session) -> None:
    """Kill the two ends of accounts a thousand times and compare their books; the harness gets options after ``--``.

    The receiver of payments is killed a thousand times as well.
    """
    session.install("-e", ".[stream]")
    session.run("python", "tests/crash/harness.py", "--kills", "1000", *session.posargs)
    session.run("python", "tests/crash/payments.py", "--kills", "1000")


@nox.session
def standby(session: nox.Session) -> None:
    """Inflict a thousand faults on two processes with one ledger, and on their PostgreSQL; options after ``--``."""
    session.install("-e", ".[test]")
    session.run("python", "tests/crash/standby.py", "--faults", "1000", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Try damaged inputs, by mutation and guided by coverage; the seconds are given after ``--``, 60 by default.

    If atheris cannot be installed, all the time goes to mutation, which the tests run as well.
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
        # Each run uses a new seed; the tests try the same inputs each time.
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
    """Check that memory, files and tasks do not grow under load and faults; minutes after ``--``, 60 by default."""
    session.install("-e", ".[test]")
    minutes = session.posargs[0] if session.posargs else "60"
    with session.chdir("tests"):
        session.run("python", "-m", "soak.soak", "--minutes", minutes, *session.posargs[1:])


@nox.session
def autobahn(session: nox.Session) -> None:
    """Run the Autobahn WebSocket test suite against both ends; the path of a Python 2.7 can be given after ``--``.

    The suite runs on no other Python. The session makes an environment for it, so only the interpreter is needed.
    """
    wanted = session.posargs[:1] or ["python2.7"]
    old = shutil.which(wanted[0])
    probe = ["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    said = session.run(old, *probe, external=True, silent=True, success_codes=range(256)) if old else ""
    if str(said).strip() != "2.7":
        session.error(f"{wanted[0]} is no Python 2.7 that works: the suite needs one; give its path after --")
    where = Path(session.create_tmp()).resolve()
    # The last version of virtualenv that supports Python 2.7.
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
    """Build wheel and sdist, run the demo from each in a clean environment, and run tests from the sdist.

    With ``wheel`` after ``--`` the sdist is built but not run.
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
        # Run elsewhere, because here Python would import the sources instead of the installed package.
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
