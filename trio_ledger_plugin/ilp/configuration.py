"""Asks the peer for this end's ILP address and asset (RFC-0031)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DecodeError, RemoteError

if TYPE_CHECKING:
    from ..codec.ildcp import IldcpResponse
    from ..plugin import LedgerPlugin

__all__ = ["check_plugin", "fetch_ildcp", "read_ildcp_answer"]


async def fetch_ildcp(plugin: LedgerPlugin) -> IldcpResponse:
    """Ask the peer which ILP address and asset this end of the account has (RFC-0031).

    Args:
        plugin: A connected plugin.

    Returns:
        ``client_address``, ``asset_scale`` and ``asset_code``.

    Raises:
        TypeError: ``plugin`` is something else.
        RemoteError: The peer rejected the request; ``code`` is the ILP error code of its Reject.
        DecodeError: The answer is not an ILDCP response.
        LedgerPluginError: As ``LedgerPlugin.send_data`` raises it.

    Cancellation: Safe at any time.
    """
    check_plugin(plugin)
    from ..codec import ildcp  # noqa: PLC0415 (a tenth of this package's import time, which few programs need)

    return read_ildcp_answer(await plugin.send_data(ildcp.encode(ildcp.IldcpRequest())))


def check_plugin(plugin: object) -> None:
    """Check that a plugin was given, and not its options for example.

    Raises:
        TypeError: It is something else.
    """
    if not callable(getattr(plugin, "send_data", None)):
        raise TypeError(f"plugin is an open LedgerPlugin, not {type(plugin).__name__}")


def read_ildcp_answer(answer: bytes) -> IldcpResponse:
    """Return the ILDCP response in an answer.

    Raises:
        RemoteError: It is a Reject.
        DecodeError: It is not an ILDCP response.
    """
    from ..codec import ildcp, ilp  # noqa: PLC0415 (as above)
    from ..codec.refusals import read_reject  # noqa: PLC0415 (as above)

    try:
        packet: ilp.Packet | None = ilp.decode(answer)
    except DecodeError:
        packet = read_reject(answer)
        if packet is None:
            raise
    if isinstance(packet, ilp.Reject):
        raise RemoteError(packet.code, "Reject", data=packet.message.encode())
    response = ildcp.decode(answer)
    if not isinstance(response, ildcp.IldcpResponse):
        raise DecodeError("the peer sent the ILDCP request back; it only echoes")
    return response
