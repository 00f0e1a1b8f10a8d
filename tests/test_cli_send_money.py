"""``send-money``, and ``ping`` of what the environment names, as users run them."""

import json
import re
import signal
from pathlib import Path

import pytest
import trio
from attrs import evolve
from support.programs import CANARY, PROGRAM, assert_one_error, posix, run, running

from trio_ledger_plugin import BtpOptions, ListenerOptions, PluginServices, current_transfer, open_plugin
from trio_ledger_plugin.cli import main
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.testing.conformance.assertions import echo

pytestmark = pytest.mark.slow

OPTIONS = BtpOptions(listener=ListenerOptions(0, CANARY))


async def test_money_is_sent_and_told() -> None:
    taken: list[str] = []

    async def take(amount: str) -> None:
        taken.append(amount)

    async with open_plugin(OPTIONS, money_handler=take) as server:
        url = server.address.replace("://", f"://:{CANARY}@")
        assert await run("send-money", url, "2500") == (0, "sent 2,500 (PLAIN): the peer has acknowledged it\n", "")
        code, stdout, stderr = await run("send-money", server.address, "7", "--json", TRIO_LEDGER_PLUGIN_SECRET=CANARY)
        assert (code, stderr) == (0, "")
        assert json.loads(stdout) == {"address": server.address, "amount": "7", "key": None, "level": "plain"}
    assert taken == ["2500", "7"]


async def test_key_is_sent_only_once(tmp_path: Path) -> None:
    """Whoever repeats a command after a broken line would pay twice."""
    taken: list[str | None] = []
    done = trio.Event()

    async def take(amount: str) -> None:
        taken.append(current_transfer().key)
        done.set()

    async with (
        open_sqlite_store(tmp_path / "server.db") as store,
        open_plugin(OPTIONS, PluginServices(store=store), money_handler=take) as server,
    ):
        url = server.address.replace("://", f"://:{CANARY}@")
        for _ in range(2):
            told = await run("send-money", url, "250", "--store", str(tmp_path / "wallet.db"), "--key", "rent-july")
            assert told == (0, "sent 250 under the key rent-july (KEYED): the peer has acknowledged it\n", "")
        await done.wait()
    assert taken == ["rent-july"]


@posix
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
@pytest.mark.parametrize("has_store", [False, True])
async def test_interrupted_payment_says_how_to_go_on(
    number: int, code: int, said: str, tmp_path: Path, *, has_store: bool
) -> None:
    """The same command without the key that it has made up would pay a second time."""
    came = trio.Event()

    async def hang(_amount: str) -> None:
        came.set()
        await trio.sleep_forever()

    store = ["--store", str(tmp_path / "wallet.db")] if has_store else []
    async with open_plugin(evolve(OPTIONS, close_timeout=0.1), money_handler=hang) as server:
        url = server.address.replace("://", f"://:{CANARY}@")
        async with running(*PROGRAM, "send-money", url, "5", *store) as command:
            await came.wait()
            assert (await command.end(number))[0] == code
    lost = f"error: {said}; the money may have been sent, or may still be; "
    if not has_store:
        assert command.output.strip() == f"{lost}ask the peer"
        return
    told = re.fullmatch(f"{lost}run the command again with --key (.+)", command.output.strip())
    assert told is not None
    assert f"plain  {told[1]}\n" in (await run("transfers", str(tmp_path / "wallet.db")))[1]


async def test_money_that_is_not_sent_is_one_line() -> None:
    async with open_plugin(OPTIONS) as server:
        url = server.address.replace("://", f"://:{CANARY}@")
        refused = "the peer refuses the money: the peer answered T00 UnreachableError: no money handler is registered"
        assert await run("send-money", url, "5") == (1, "", f"error: {refused}\n")
        code, stdout, stderr = await run("send-money", url, "5", "--key", "k")
        assert (code, stdout) == (2, "")
        assert_one_error(stderr)
        code, _, stderr = await run("send-money", server.address.replace("btp+ws://", f"http://:{CANARY}@"), "5")
        assert code == 1
        assert stderr == "error: ILP over HTTP carries no money; settle with the peer in another way\n"


AMOUNT = "the amount must be a positive whole number of smallest units, at most 18446744073709551615"


@pytest.mark.parametrize("amount", ["0", "-1", "-25", "-1.5", "1.5", "1e3", "ten", str(2**64), ""])
@pytest.mark.parametrize(
    ("command", "where"),
    [
        (["send-money", f"btp+ws://:{CANARY}@127.0.0.1:1"], "AMOUNT"),
        (["pay", "$wallet.example", "--send"], "--send"),
        (["quote", "$wallet.example", "--deliver"], "--deliver"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_amount_is_said_to_be_one(
    command: list[str], where: str, amount: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user would be told that -1 is no option, or what a range of integers is."""
    assert main([*command, amount]) == 2
    _, err = capsys.readouterr()
    assert_one_error(err)
    assert f"{AMOUNT}; see trio-ledger-plugin {command[0]} --help" in err
    assert where in err or amount.startswith("-")


def test_mistyped_option_is_not_called_an_amount(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["send-money", f"btp+ws://:{CANARY}@127.0.0.1:1", "5", "--kye", "k"]) == 2
    _, err = capsys.readouterr()
    assert_one_error(err)
    assert "No such option '--kye'" in err


async def test_ping_reads_the_environment_of_programs() -> None:
    """Credentials that work in a program would have to be taken apart for the command."""
    async with open_plugin(OPTIONS, data_handler=echo) as server:
        url = server.address.replace("://", f"://:{CANARY}@")
        credentials = json.dumps({"server": url, "responseTimeout": 1000, "connect_timeout": 2})
        code, stdout, stderr = await run("ping", "--count", "1", "--json", ILP_CREDENTIALS=credentials)
        assert (code, stderr) == (0, "")
        told = json.loads(stdout)
        assert (told["address"], told["answered"]) == (server.address, 1)
        code, stdout, stderr = await run("ping", ILP_CREDENTIALS="{'server'")
        assert (code, stdout) == (2, "")
        assert stderr.startswith("error: ILP_CREDENTIALS: must be a JSON object")
        assert "line 1, column 2" in stderr
        assert_one_error(stderr)
    code, stdout, stderr = await run("ping", ILP_CREDENTIALS="", ILP_BTP_SERVER="", ILP_PLUGIN="")
    assert (code, stdout) == (2, "")
    assert "give a URL, or set one of ILP_CREDENTIALS, ILP_BTP_SERVER, ILP_PLUGIN" in stderr
