"""Send one ILP Prepare and check the fulfillment in the answer.

python ilp_ping.py         asks a peer in this program
python ilp_ping.py URL     asks the peer at URL, such as `trio-ledger-plugin serve --reply fulfill`
"""

import hashlib
import os
import sys

import trio

from trio_ledger_plugin import LedgerPlugin, open_plugin
from trio_ledger_plugin.codec import ilp


def preimage(data: bytes) -> bytes:
    """Return the digest of the packet's data, which both ends can compute."""
    return hashlib.sha256(data).digest()


async def fulfill(data: bytes) -> bytes:
    """Answer a Prepare with the preimage of its condition, as the peer in this program does."""
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
            print("not an answer: the peer sent a Prepare")


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
