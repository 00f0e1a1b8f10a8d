"""Inputs that reach new code, found by atheris (libFuzzer), which the extra ``fuzz`` brings.

    python -m fuzz.coverage_guided packets|streams --seconds 3600 DIRECTORY       (in tests/)

DIRECTORY keeps what was found between runs; it starts with the seeds of the mutation fuzzer.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from random import Random

import atheris  # type: ignore[import-untyped]  # it comes without types

with atheris.instrument_imports(include=["trio_ledger_plugin.codec", "trio_ledger_plugin.websocket.frames"]):
    from .targets import check_codec, check_frames

from .mutation import packet_seeds, stream_seeds

__all__: list[str] = []


def try_packet(data: bytes) -> None:
    check_codec(data)


def try_stream(data: bytes) -> None:
    check_frames(data, Random(len(data)))


def main(what: str, seconds: int, directory: Path) -> None:
    """Try inputs until the time is up; libFuzzer ends the process, with an error when something was found."""
    directory.mkdir(parents=True, exist_ok=True)
    for seed in packet_seeds() if what == "packets" else stream_seeds():
        (directory / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    options = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        "-max_len=4096",
        f"-artifact_prefix={directory}/found-",
        "-print_final_stats=1",
        "-verbosity=0",
        str(directory),
    ]
    atheris.Setup(options, try_packet if what == "packets" else try_stream)
    atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("packets", "streams"))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    main(arguments.what, arguments.seconds, arguments.directory)
