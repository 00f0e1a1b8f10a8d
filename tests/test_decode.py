"""``decode`` shows every packet that the plugin accepts, and never a token."""

import json
import os
import re
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from support.programs import CANARY, PATIENCE, PROGRAM, assert_one_error, environment, run
from support.strategies import vectors

from trio_ledger_plugin.btp.auth import auth_message
from trio_ledger_plugin.cli import main
from trio_ledger_plugin.codec import btp, ildcp, ilp

NOON = datetime(2030, 8, 31, 12, 0, 0, 899_000, tzinfo=UTC)


def decoded(capsys: Any, *args: str) -> Any:
    assert main(["decode", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


PREPARE = ilp.Prepare(2**64 - 1, NOON, bytes(range(32)), "example.alice", b"\x00\x01")
AUTH = auth_message(7, "alice", CANARY, {"flag": "on"})


def test_decode_shows_an_ilp_packet_in_a_btp_packet(capsys: Any) -> None:
    frame = btp.encode(btp.Message(5, (btp.ProtocolData("ilp", 0, ilp.encode(PREPARE)),)))
    told = decoded(capsys, frame.hex())
    assert (told["protocol"], told["packet"], told["request_id"]) == ("btp", "Message", 5)
    assert told["protocol_data"] == [
        {
            "protocol_name": "ilp",
            "content_type": "octet-stream",
            "data": {
                "protocol": "ilp",
                "packet": "Prepare",
                "amount": "18446744073709551615",
                "expires_at": "2030-08-31T12:00:00.899Z",
                "execution_condition": bytes(range(32)).hex(),
                "destination": "example.alice",
                "data": "0001",
            },
        }
    ]
    assert main(["decode", frame.hex(":")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("BTP Message\n  request_id: 5\n")
    assert "        ILP Prepare\n          amount: 18446744073709551615\n" in out


def test_decode_knows_ildcp(capsys: Any) -> None:
    answer = ildcp.encode(ildcp.IldcpResponse("test.parent.child", 9, "XRP"))
    told = decoded(capsys, answer.hex())
    assert told["protocol"] == "ildcp"
    assert (told["client_address"], told["asset_scale"], told["asset_code"]) == ("test.parent.child", 9, "XRP")
    assert decoded(capsys, "--as", "ilp", answer.hex())["packet"] == "Fulfill"
    assert decoded(capsys, ildcp.encode(ildcp.IldcpRequest()).hex())["packet"] == "IldcpRequest"


@pytest.mark.parametrize("how", [["--json"], ["--as", "btp"], []])
def test_decode_never_shows_a_token(how: list[str], capsys: Any) -> None:
    """A user who asks for help with a packet would publish the account's token."""
    assert main(["decode", AUTH.hex(), *how]) == 0
    out = capsys.readouterr().out
    assert "alice" in out
    assert "***" in out
    assert CANARY not in out
    assert CANARY.encode().hex() not in out


def test_decode_never_shows_a_token_of_a_broken_packet(capsys: Any) -> None:
    for size in range(1, len(AUTH)):
        assert main(["decode", AUTH[:size].hex()]) == 5
        out, err = capsys.readouterr()
        assert out == ""
        assert_one_error(err)
        assert CANARY.encode().hex() not in err


def test_decode_escapes_text_and_reports_cuts(capsys: Any) -> None:
    """A packet could control the terminal that shows it."""
    entries = (
        btp.ProtocolData("a\x1b[2J", btp.TEXT, b"\x1b[31mred\n"),
        btp.ProtocolData("claim", btp.JSON, b"\xff"),
        btp.ProtocolData("ilp", 0, b"\x06no"),
        btp.ProtocolData("long", 77, bytes(300)),
    )
    frame = btp.encode(btp.Error(1, "F00", "NotAcceptedError", NOON, b"no", entries))
    assert main(["decode", frame.hex() + "00ff"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[31mred\n" in out
    assert "not UTF-8" in out
    assert "not an ILP packet" in out
    assert "long (77)" in out
    assert "... (600 characters)" in out
    assert "ignored_bytes: 2" in out


async def test_decode_reads_stdin_and_survives_a_closed_pipe() -> None:
    digits = "\n".join(AUTH.hex(" ", 1).upper()[at : at + 48] for at in range(0, len(AUTH) * 3, 48))
    code, stdout, stderr = await run("decode", "-", stdin=f"0x{digits}\n".encode())
    assert (code, stderr) == (0, "")
    assert "alice" in stdout
    reader, writer = os.pipe()
    os.close(reader)
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            [*PROGRAM, "decode", AUTH.hex()], stdout=writer, capture_stderr=True, check=False, env=environment()
        )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("vector", [*vectors("btp-valid"), *vectors("ilp-valid"), *vectors("ildcp-valid")])
def test_decode_accepts_every_recorded_packet(vector: Any, capsys: Any) -> None:
    """``decode`` must show every packet that the plugin accepts."""
    code = main(["decode", vector["hex"]])
    assert code == (5 if vector.get("legacy") else 0)


@pytest.mark.parametrize(
    ("digits", "text"),
    [
        ("", "no packet was given"),
        ("0c1", "3 digits are an odd number"),
        (f"0c{CANARY}zz", "character 5 is not a digit"),
        ("09", "9 is not the type"),
        ("0c", "not a whole one"),
    ],
)
def test_decode_explains_wrong_input(digits: str, text: str, capsys: Any) -> None:
    assert main(["decode", digits]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert_one_error(err)
    assert text in err


def test_packet_in_the_help_is_valid(capsys: Any) -> None:
    main(["decode", "--help"])
    example = re.search(r"decode ([0-9a-f]{60,})\n", capsys.readouterr().out)
    assert example
    assert main(["decode", example[1]]) == 0
