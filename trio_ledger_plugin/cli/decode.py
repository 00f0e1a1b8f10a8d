"""``decode``: what is in a packet.

Invariant: the data of an ``auth_token`` entry is never shown, nor its size, nor the input that contains it.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import click
from attrs import fields

from ..btp.auth import AUTH_TOKEN
from ..btp.session import ILP
from ..codec import btp, ildcp, ilp
from ..codec.oer import read_octets, read_utf8
from ..errors import DecodeError
from ..log import escape
from .errors import ENDED, Exit
from .output import Screen
from .parameters import Command, epilog, json_option

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator

    from attrs import AttrsInstance

__all__ = ["decode"]

# The decoder, and the offset of the body's length: after the type and, in BTP, the request id.
CODECS: dict[str, tuple[Callable[[bytes], Any], int]] = {
    "btp": (btp.decode, 5),
    "ilp": (ilp.decode, 1),
    "ildcp": (ildcp.decode, 1),
}
CONTENT_TYPES = {btp.OCTET_STREAM: "octet-stream", btp.TEXT: "text", btp.JSON: "json"}
MAX_SHOWN = 96

Description = dict[str, Any]

EXAMPLES = """
  trio-ledger-plugin decode 0d21000000000000000000000000000000000000000000000000000000000000000000
  xxd -p packet.bin | trio-ledger-plugin decode - --json
  trio-ledger-plugin decode --as ilp 0c...
"""


@click.command(
    cls=Command,
    epilog=epilog(EXAMPLES, Exit.OK, Exit.USAGE, Exit.NO_PACKET, *ENDED),
    short_help="What is in a BTP, ILP or ILDCP packet.",
)
@click.argument("digits", metavar="HEX")
@click.option("--as", "protocol", type=click.Choice(list(CODECS)), help="The protocol; detected if not given.")
@json_option
def decode(digits: str, protocol: str | None, as_json: bool) -> int:
    """Show the contents of a BTP, ILP or ILDCP packet.

    HEX is the packet in hexadecimal, with or without spaces, colons and 0x; - reads it from stdin. An ILP packet in a
    BTP packet is shown too. Authentication tokens are shown as ***. Long data is cut, except with --json. There amounts
    are text, since many JSON readers do not keep 64 bits.
    """
    packet = _from_hex(_read_stdin() if digits == "-" else digits)
    description = describe(packet, protocol)
    if as_json:
        click.echo(json.dumps(description))
    else:
        screen = Screen()
        for line in _lines(description, 0):
            screen.line(line)
    return Exit.OK


def describe(data: bytes, protocol: str | None = None) -> Description:
    """Return a packet's contents as text and numbers.

    Args:
        data: The packet.
        protocol: ``"btp"``, ``"ilp"`` or ``"ildcp"``; if None, it is detected from the first byte and the content.

    Raises:
        DecodeError: The data is not a packet.
    """
    protocol = protocol or _protocol_of(data)
    read, body_at = CODECS[protocol]
    try:
        packet = read(data)
    except DecodeError as error:
        article = "a" if protocol == "btp" else "an"
        raise DecodeError(f"this is not {article} {protocol.upper()} packet, or not a whole one: {error}") from error
    description = {"protocol": protocol, "packet": type(packet).__name__, **_fields_of(packet)}
    _, end = read_octets(data, body_at)
    if end < len(data):
        description["ignored_bytes"] = len(data) - end
    return description


def _read_stdin() -> str:
    chunks, stdin = [], cast("io.BufferedReader", sys.stdin.buffer)
    # In pieces: Ctrl-C takes effect between them.
    while chunk := stdin.read1(65536):
        chunks.append(chunk)
    return b"".join(chunks).decode("ascii", "replace")


def _from_hex(text: str) -> bytes:
    digits = "".join(text.split()).replace(":", "").lower().removeprefix("0x")
    if not digits:
        raise DecodeError("no packet was given; give it in hexadecimal")
    try:
        return bytes.fromhex(digits)
    except ValueError:
        pass
    wrong = len(digits) - len(digits.lstrip("0123456789abcdef"))
    problem = (
        f"character {wrong + 1} is not a digit" if wrong < len(digits) else f"{len(digits)} digits are an odd number"
    )
    raise DecodeError(f"this is not hexadecimal: {problem}")


def _protocol_of(data: bytes) -> str:
    if data[0] in {btp.RESPONSE, btp.ERROR, btp.MESSAGE, btp.TRANSFER}:
        return "btp"
    if data[0] not in {ilp.PREPARE, ilp.FULFILL, ilp.REJECT}:
        raise DecodeError(f"{data[0]} is not the type of a BTP or ILP packet")
    try:
        ildcp.decode(data)
    except DecodeError:
        return "ilp"
    return "ildcp"


def _fields_of(packet: AttrsInstance) -> Description:
    return {each.name: _shown(each.name, getattr(packet, each.name)) for each in fields(type(packet))}


def _shown(name: str, value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if name == "amount":
        return str(value)
    if name == "protocol_data":
        assert isinstance(value, tuple)
        return [_entry(entry) for entry in value]
    return value


def _entry(entry: btp.ProtocolData) -> Description:
    kind = CONTENT_TYPES.get(entry.content_type, str(entry.content_type))
    description: Description = {"protocol_name": entry.protocol_name, "content_type": kind}
    if entry.protocol_name == AUTH_TOKEN:
        return {**description, "data": "***"}
    if entry.protocol_name == ILP and entry.data:
        try:
            return {**description, "data": describe(entry.data, _ilp_protocol_of(entry.data))}
        except DecodeError as error:
            description["problem"] = str(error)
    if entry.content_type in {btp.TEXT, btp.JSON}:
        try:
            return {**description, "data": read_utf8(entry.data, "the entry")}
        except DecodeError as error:
            description["problem"] = str(error)
    return {**description, "data": entry.data.hex()}


def _ilp_protocol_of(data: bytes) -> str:
    # BTP packets do not nest.
    return "ilp" if (protocol := _protocol_of(data)) == "btp" else protocol


def _lines(description: Description, indent: int) -> Iterator[str]:
    """Yield the lines that show a description to people."""
    margin = "  " * indent
    if "packet" in description:
        yield f"{margin}{description['protocol'].upper()} {description['packet']}"
        margin += "  "
    for name, value in description.items():
        if name in {"protocol", "packet"}:
            continue
        if isinstance(value, dict):
            yield from _lines(value, indent + 1)
        elif isinstance(value, list):
            yield f"{margin}{name}: {len(value)}"
            for entry in value:
                rest = {key: entry[key] for key in entry if key not in {"protocol_name", "content_type"}}
                yield f"{margin}  {escape(entry['protocol_name'])} ({entry['content_type']})"
                yield from _lines(rest, indent + 3)
        else:
            yield f"{margin}{name}: {_cut(value)}"


def _cut(value: object) -> str:
    text = escape(str(value)) or "(empty)"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"
