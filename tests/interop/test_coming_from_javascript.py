"""The page for users of the JavaScript plugins: its settings connect a real ilp-connector to its program."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
from support.pages import ROOT, read_blocks
from support.programs import running as running_program

from trio_ledger_plugin import open_plugin

from .connector import CONNECTOR, running
from .network import client, offer, send

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

PAGE = ROOT / "docs" / "how-to" / "coming-from-javascript.md"


async def test_settings_of_the_page_pay_its_program(tmp_path: Path) -> None:
    """A reader copies the account of a connector, and it does not connect, or is not paid."""
    blocks = read_blocks(PAGE)
    (program,) = (block for block in blocks if block.file == "shop.py")
    (settings,) = (json.loads(block.text) for block in blocks if block.kind == "json")
    path = tmp_path / program.file
    path.write_text(program.text)
    async with running_program(sys.executable, str(path)) as shop:
        await shop.wait_for(r"listening on (\S+)\n")
        async with running(ilpAddress=CONNECTOR, **settings) as url, open_plugin(client(url, "alice")) as alice:
            answer = await send(alice, offer("test.shop.order.7"))
            assert getattr(answer, "fulfillment", None) == bytes(range(32))
        assert await shop.wait_for(r"received (\d+)\n") == "1000"
