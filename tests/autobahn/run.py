"""Runs the Autobahn WebSocket test suite against our server and our client, and judges its report.

    python run.py WSTEST DIRECTORY [CASE ...]

WSTEST is the suite's program, which needs Python 2.7; DIRECTORY takes its reports. Cases are named as the suite names
them, such as ``1.*``; all but those of compression, which is never offered, by default.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["judge"]

ECHO = Path(__file__).with_name("echo.py")
TESTS = ECHO.parents[1]
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}
AGENT = "trio-ledger-plugin"


def main(wstest: Path, directory: Path, cases: list[str]) -> int:
    failures = 0
    directory.mkdir(parents=True, exist_ok=True)
    for name, ours, theirs in (("server", "server", "fuzzingclient"), ("client", "client", "fuzzingserver")):
        port = free_port()
        report = directory / name
        spec = {
            "outdir": str(report),
            "url": f"ws://127.0.0.1:{port}",
            "servers": [{"agent": AGENT, "url": f"ws://127.0.0.1:{port}"}],
            "cases": cases,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        path = directory / f"{name}.json"
        path.write_text(json.dumps(spec))
        suite = [str(wstest), "-m", theirs, "-s", str(path), "-u", "0"]
        # Only the ends find the folder of tests: the suite's own package has the name of one of them.
        echo = ["env", f"PYTHONPATH={TESTS}", sys.executable, str(ECHO), ours, str(port)]
        background, foreground = (echo, suite) if ours == "server" else (suite, echo)
        began = time.monotonic()
        with running(background, port, directory / f"{name}.log"), (directory / f"{name}-run.log").open("wb") as log:
            subprocess.run(foreground, check=True, stdout=log, stderr=log)
        failures += judge(name, json.loads((report / "index.json").read_text()), time.monotonic() - began)
    return failures


def judge(name: str, index: dict[str, dict[str, dict[str, Any]]], seconds: float) -> int:
    """Print what the suite found of one end; return how many cases failed."""
    verdicts = {case: (result["behavior"], result["behaviorClose"]) for case, result in index[AGENT].items()}
    bad = {case: verdict for case, verdict in verdicts.items() if not GOOD.issuperset(verdict)}
    counts = Counter(behavior for behavior, _ in verdicts.values())
    print(f"{name}: {len(verdicts)} cases in {seconds:.0f} s, {dict(counts)}, {len(bad)} failed")
    for case, verdict in bad.items():
        print(f"  {case}: {' / '.join(verdict)}")
    return len(bad)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[None]:
    """Run a program that listens, for the length of a block."""
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            for _ in range(200):
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield
        finally:
            process.terminate()


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or CASES)))
