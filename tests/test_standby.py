"""Killing, stopping and cutting off processes with one ledger loses and doubles no payment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "crash" / "standby.py"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [2, 3])
def test_faults_of_each_kind_lose_and_double_nothing(postgres_server, processes):
    """The fixture skips the test where there is no PostgreSQL; the program runs a server of its own."""
    command = [sys.executable, str(PROGRAM), "--faults", "10", "--processes", str(processes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=180, check=False)
    found = json.loads(done.stdout)
    assert (found["lost"], found["unknown"], found["doubled"], found["in_doubt"]) == (0, 0, 0, 0), found
    assert found["sent"] == found["credited"] > 0
    assert found["epochs"] > 1
    assert len(found["without_money"]) == len(("kill", "stop", "terminate", "restart", "promote"))
    assert done.returncode == 0
