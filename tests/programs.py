"""The program run as a process of its own, as its users run it."""

import os
import sys

import trio

CANARY = "canary7f3a"
PROGRAM = [sys.executable, "-m", "trio_ledger_plugin"]
PATIENCE = 25.0


def environment(**more: str) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if not name.startswith("TRIO_LEDGER")}, **more}


async def run(*args: str, stdin: bytes = b"", **env: str) -> tuple[int, str, str]:
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            [*PROGRAM, *args],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(**env),
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def assert_one_error(stderr: str) -> None:
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert CANARY not in stderr
