"""The page for operators: its metrics, alerts and service exist and are correct."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import trio
from support.admin import ask
from support.pages import ROOT, read_blocks

from trio_ledger_plugin import AccountsOptions, HostInfo, loopback_pair, open_plugin
from trio_ledger_plugin.admin import open_admin
from trio_ledger_plugin.admin.metrics import METRICS

HOW_TO = ROOT / "docs" / "how-to"
PAGE = HOW_TO / "operate.md"


def read_rules(page: str) -> str:
    """Return the alerts of a page as YAML."""
    (rules,) = (block.text for block in read_blocks(HOW_TO / page) if block.kind == "yaml" and "rules:" in block.text)
    return rules


def names_of_metrics() -> set[str]:
    names = {family.shown_name for family in METRICS if family.kind != "histogram"}
    parts = ("bucket", "count", "sum")
    return names | {f"{each.shown_name}_{part}" for each in METRICS if each.kind == "histogram" for part in parts}


@pytest.mark.parametrize("page", ["operate.md", "watch.md"])
def test_alerts_use_metrics_that_exist(page: str) -> None:
    """An alert about a metric that is not there never fires."""
    used = set(re.findall(r"ledger_plugin_\w+", read_rules(page)))
    assert used
    assert used <= names_of_metrics()


def test_text_names_metrics_that_exist() -> None:
    used = set(re.findall(r"`(ledger_plugin_\w+)`", PAGE.read_text(encoding="utf-8")))
    assert used <= {family.shown_name for family in METRICS}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no metrics of the process")
async def test_metrics_of_the_process_exist() -> None:
    used = set(re.findall(r"process_\w+", read_rules("operate.md")))
    assert used

    async with loopback_pair() as (plugin, _), open_admin(plugin) as admin:
        _, _, body = await ask(admin, "/metrics")
    shown = body.decode()
    assert used <= set(re.findall(r"^(process_\w+) ", shown, re.MULTILINE))


def test_every_alert_has_a_row_that_says_what_to_do() -> None:
    """An operator is woken at night and does not know why."""
    alerts = re.findall(r"- alert: (\w+)", read_rules("watch.md") + read_rules("operate.md"))
    rows = re.findall(r"^\| (`[A-Z]\w+`(?:, `\w+`)*) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    explained = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(explained) == sorted(alerts)
    assert len(alerts) > 20


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_service(tmp_path: Path) -> None:
    """A setting that is misspelt is ignored with a warning, and protects nothing."""
    (unit,) = (block.text for block in read_blocks(PAGE) if block.kind == "ini")
    service = tmp_path / "ledger.service"
    service.write_text(unit.replace("/opt/ledger/bin/python", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(service)], capture_output=True, text=True, check=False, timeout=60
    )
    # It also checks the units that this one depends on.
    assert [line for line in done.stderr.splitlines() if service.name in line] == []
    assert done.returncode == 0


def read_containers_file() -> tuple[str, int]:
    """Return the page's Dockerfile, with continued lines joined, and the port of the server in it."""
    (text,) = (block.text for block in read_blocks(PAGE) if block.kind == "dockerfile")
    ports = re.search(r"^EXPOSE (\d+)", text, re.MULTILINE)
    assert ports is not None
    return text.replace("\\\n", ""), int(ports[1])


async def test_health_check_asks_the_server() -> None:
    """The check passes without a server, and a supervisor of containers never notices that it is gone."""
    text, port = read_containers_file()
    command = re.search(r"^HEALTHCHECK .*?CMD (\[.*\])$", text, re.MULTILINE)
    assert command is not None
    python, *arguments = json.loads(command[1])
    assert python == "python"

    async def check() -> int:
        done = await trio.run_process([sys.executable, *arguments], check=False, capture_stderr=True)
        return done.returncode

    options = AccountsOptions(port=port, debug_host_ildcp_info=HostInfo("example.router", 9, "XRP"))
    with trio.fail_after(60):
        async with open_plugin(options):
            assert await check() == 0
        assert await check() == 1
        # The system accepts connections for a program that does not.
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        async with listener:
            assert await check() == 1


def test_image_gets_what_the_build_and_the_server_need() -> None:
    text, _ = read_containers_file()
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) ", text, re.MULTILINE) for name in line.split()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert copied == {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *packages}

    (program,) = (block.text for block in read_blocks(PAGE) if block.file == "server.py")
    variables = set(re.findall(r"\b((?:LEDGER|ADMIN)_\w+)=", PAGE.read_text(encoding="utf-8")))
    assert variables == set(re.findall(r'environ(?:\.get\(|\[)"(\w+)"', program))
