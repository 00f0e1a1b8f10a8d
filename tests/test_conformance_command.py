"""``trio-ledger-plugin conformance`` as authors of plugins run it."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from support.programs import PATIENCE, PROGRAM, assert_one_error, environment, run

from trio_ledger_plugin.testing.conformance import CHECKS

if TYPE_CHECKING:
    from pathlib import Path

KIT = """
from contextlib import asynccontextmanager
from support.broken_plugins import BROKEN
from trio_ledger_plugin.testing.conformance.builtin_pairs import loopback
broken = BROKEN["version_is_2"]
number = 7

async def coroutine(conditions):
    pass

async def generator(conditions):
    yield loopback

@asynccontextmanager
async def pair(conditions):
    yield conditions.new({"plugin": "loopback"}, None), 7

@asynccontextmanager
async def without_argument():
    yield

@asynccontextmanager
async def failing(conditions):
    raise KeyError("no such table")
    yield
"""


async def run_in(folder: Path, *args: str) -> tuple[int, str, str]:
    """Run it in the author's folder, where the tests' modules can be imported too."""
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            [*PROGRAM, "conformance", *args],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=folder,
            env=environment(PYTHONPATH=os.pathsep.join(path for path in sys.path if path)),
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "kit.py").write_text(KIT)
    (tmp_path / "wrong_syntax.py").write_text("def pair(:")
    (tmp_path / "wrong_name.py").write_text("pair = pear")
    return tmp_path


async def test_each_check_has_a_line(folder: Path) -> None:
    code, stdout, stderr = await run("conformance", "loopback")
    assert (code, stderr) == (0, "")
    first, *lines, last = stdout.splitlines()
    assert first == "loopback"
    assert [line[6:].partition(":")[0] for line in lines] == [check.name for check in CHECKS]
    assert {line[:6] for line in lines} == {"PASS  ", "N/A   "}
    passed = sum(line.startswith("PASS") for line in lines)
    assert last == f"PASS: {passed} passed, 0 failed, {len(lines) - passed} not applicable"


async def test_both_ends_of_btp_are_checked_with_stores() -> None:
    names = ("a_known_key_has_its_effect_once", "version_is_2")
    checks = [word for name in names for word in ("--check", name)]
    code, stdout, stderr = await run("conformance", "btp", "--store", *checks)
    assert (code, stderr) == (0, "")
    assert stdout.splitlines() == [
        "btp client, with transactional stores",
        *(f"PASS  {name}" for name in names),
        "btp listener, with transactional stores",
        *(f"PASS  {name}" for name in names),
        "PASS: 4 passed, 0 failed, 0 not applicable",
    ]


async def test_failing_plugin_sets_the_exit_code(folder: Path) -> None:
    """A build would go on with a plugin that does not conform."""
    code, stdout, stderr = await run_in(folder, "kit:broken")
    assert (code, stderr) == (1, "")
    assert "FAIL  version_is_2: the class's version is 1, not 2\n" in stdout
    assert stdout.splitlines()[-1].startswith("FAIL: ")


async def test_no_applicable_check_is_no_success(folder: Path) -> None:
    code, stdout, _ = await run_in(folder, "kit:loopback", "--check", "a_connection_that_is_cut_is_told_once")
    assert code == 1
    assert "N/A   a_connection_that_is_cut_is_told_once: the factory gives no cut\n" in stdout
    assert stdout.endswith("FAIL: 0 passed, 0 failed, 1 not applicable\n")


async def test_json_has_each_sentence_and_verdict(folder: Path) -> None:
    code, stdout, stderr = await run_in(folder, "kit:broken", "--json", "--check", "version_is_2")
    assert (code, stderr) == (1, "")
    told = json.loads(stdout)
    check = next(check for check in CHECKS if check.name == "version_is_2")
    assert told == {
        "passed": False,
        "transactional": False,
        "pairs": [
            {
                "pair": "broken",
                "passed": False,
                "checks": [
                    {
                        "check": "version_is_2",
                        "section": "LedgerPlugin.version",
                        "level": "must",
                        "sentence": check.sentence,
                        "verdict": "failed",
                        "detail": "the class's version is 1, not 2",
                    }
                ],
            }
        ],
    }


@pytest.mark.parametrize(
    "args",
    [
        ("no-such-plugin",),
        ("no_such_module:pair",),
        ("kit:no_such_factory",),
        ("kit:number",),
        ("wrong_syntax:pair",),
        ("wrong_name:pair",),
        ("loopback", "--check", "no_such_check"),
        (),
    ],
)
async def test_wrong_arguments_are_one_line(folder: Path, args: tuple[str, ...]) -> None:
    code, stdout, stderr = await run_in(folder, *args)
    assert (code, stdout) == (2, "")
    assert_one_error(stderr)


ADVICE = "it is an async generator function that yields a PluginPair, under @asynccontextmanager"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("coroutine", f"returns a value of type coroutine; {ADVICE}"),
        ("generator", f"returns a value of type async_generator; {ADVICE}"),
        ("pair", "yields a value of type tuple, not a PluginPair"),
        (
            "without_argument",
            "gives no pair: TypeError: without_argument() takes 0 positional arguments but 1 was given",
        ),
        ("failing", "gives no pair: KeyError: 'no such table'"),
    ],
)
async def test_wrong_factory_is_one_line(folder: Path, name: str, text: str) -> None:
    """Its author would read eighty failed checks, each with the same error."""
    code, stdout, stderr = await run_in(folder, f"kit:{name}")
    assert (code, stdout) == (2, "")
    assert stderr == f"error: the factory {text}; see trio-ledger-plugin conformance --help\n"
