"""What commands say about a server that the environment names, or that nobody names."""

import click
import pytest
from support.programs import CANARY, assert_one_error

from trio_ledger_plugin import BtpOptions, ListenerOptions, environment, open_plugin
from trio_ledger_plugin.cli import main
from trio_ledger_plugin.cli.dialing import open_client
from trio_ledger_plugin.cli.errors import advice, exit_code_of

PAY = ["pay", "http://127.0.0.1:1/", "--send", "1"]
QUOTE = ["quote", "http://127.0.0.1:1/", "--send", "1"]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ILP_CREDENTIALS", "ILP_BTP_SERVER", "ILP_PLUGIN"):
        monkeypatch.delenv(name, raising=False)
    # Nothing listens there; at the default address a developer's server may.
    monkeypatch.setattr(environment, "DEFAULT_SERVER", "btp+ws://127.0.0.1:1")


def error_of(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(args)
    _, err = capsys.readouterr()
    assert_one_error(err)
    return code, err


@pytest.mark.parametrize("args", [PAY, QUOTE, ["receive"]], ids=lambda args: args[0])
def test_default_server_that_is_down_is_explained(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A user who forgot --server would look for a server that has nothing to do with it."""
    code, err = error_of([*args, "--timeout", "0.3"], capsys)
    assert code == 3
    assert "cannot connect to btp+ws://127.0.0.1:1: Connection refused" in err
    assert err.endswith("the default was tried, since neither --server nor ILP_CREDENTIALS nor ILP_BTP_SERVER is set\n")


def test_ping_of_the_default_server_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ILP_PLUGIN", "btp")
    code, err = error_of(["ping", "--timeout", "0.3"], capsys)
    assert code == 3
    assert err.endswith("the default was tried, since neither a URL nor ILP_CREDENTIALS nor ILP_BTP_SERVER is set\n")


async def test_default_server_that_refuses_the_token_is_explained() -> None:
    """The user would check a token that was made up by chance."""
    async with open_plugin(BtpOptions(listener=ListenerOptions(0, CANARY))) as server:
        options = BtpOptions(server=server.address, btp_token="random")
        with pytest.raises(click.ClickException, match=r"refuses.*; the default was tried") as caught:
            async with open_client(options, 5, lacking="--server"):
                pass
    assert exit_code_of(caught.value) == 4
    assert advice(caught.value) == ""


def test_named_server_is_not_called_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = "btp+ws://127.0.0.1:2"
    code, err = error_of([*PAY, "--timeout", "0.3", "--server", named.replace("//", f"//:{CANARY}@")], capsys)
    assert code == 3
    assert "default" not in err
    monkeypatch.setenv("ILP_BTP_SERVER", named)
    code, err = error_of([*PAY, "--timeout", "0.3"], capsys)
    assert code == 3
    assert "default" not in err


@pytest.mark.parametrize("args", [["ping"], PAY, QUOTE, ["receive"]], ids=lambda args: args[0])
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ILP_CREDENTIALS": '{"servr": 1}'}, "ILP_CREDENTIALS: 'servr': unknown, did you mean 'server'?; server: "),
        ({"ILP_CREDENTIALS": '{"plugin": "bpt"}'}, "ILP_CREDENTIALS: plugin is 'bpt'; "),
        ({"ILP_CREDENTIALS": "{}", "ILP_PLUGIN": "bpt"}, "ILP_PLUGIN: plugin is 'bpt'; "),
        ({"ILP_CREDENTIALS": "[]"}, "ILP_CREDENTIALS: must be a JSON object"),
        ({"ILP_BTP_SERVER": "localhost"}, "ILP_BTP_SERVER: server: must begin with 'btp+wss://'"),
        ({"ILP_PLUGIN": "http"}, "ILP_PLUGIN without ILP_CREDENTIALS: 'server': unknown, an option of 'btp'; "),
    ],
)
def test_mistake_in_the_environment_names_the_variable(
    args: list[str],
    variables: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A user who gave no such option would not know where it came from."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, err = error_of(args, capsys)
    assert code == 2
    assert err.startswith(f"error: {said}")
