"""Ask for a fulfillment and check it: one ILP packet there, its answer back.

python ilp_ping.py         asks a peer within this program
python ilp_ping.py URL     asks the peer at URL, such as one that `trio-ledger-plugin serve --reply fulfill` runs
"""

import hashlib
import os
import sys

import trio

from trio_ledger_plugin import LedgerPlugin, open_plugin
from trio_ledger_plugin.codec import ilp


def preimage(data: bytes) -> bytes:
    """Both ends know it without having met: it is the digest of the packet's data."""
    return hashlib.sha256(data).digest()


async def fulfill(data: bytes) -> bytes:
    """Answer a Prepare with the preimage of its condition; the peer within this program does."""
    try:
        prepare = ilp.decode(data)
        assert isinstance(prepare, ilp.Prepare)
    except (ValueError, AssertionError):
        return ilp.encode(ilp.Reject(ilp.ErrorCode.BAD_REQUEST, "", "not a Prepare"))
    answer = preimage(prepare.data)
    if not ilp.fulfills(answer, prepare.execution_condition):
        return ilp.encode(ilp.Reject(ilp.ErrorCode.WRONG_CONDITION, "", "not a condition of mine"))
    return ilp.encode(ilp.Fulfill(answer))


async def ping(plugin: LedgerPlugin) -> None:
    data = os.urandom(32)
    condition = hashlib.sha256(preimage(data)).digest()
    prepare = ilp.make_prepare(0, "peer.ping", condition, lifetime=10.0, data=data)
    began = trio.current_time()
    answer = ilp.decode(await plugin.send_data(ilp.encode(prepare)))
    milliseconds = 1000 * (trio.current_time() - began)
    match answer:
        case ilp.Fulfill() if ilp.fulfills(answer.fulfillment, condition):
            print(f"fulfilled in {milliseconds:.1f} ms")
        case ilp.Fulfill():
            print("fulfilled with a wrong preimage: not a proof of anything")
        case ilp.Reject():
            print(f"rejected: {answer.code} {answer.message}")
        case _:
            print("that is no answer: the peer sent a Prepare")


async def main(url: str | None) -> None:
    if url is not None:
        async with open_plugin({"plugin": "btp", "server": url}) as plugin:
            await ping(plugin)
        return
    options = {"plugin": "loopback", "name": "ping"}
    async with open_plugin(options, data_handler=fulfill), open_plugin(options) as plugin:
        await ping(plugin)


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
