"""The page for operators: its metrics, alerts and service exist and are correct."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.admin import ask
from support.pages import ROOT, read_blocks

from trio_ledger_plugin import loopback_pair
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
