"""The address of a client behind proxies.

Invariant: only what a trusted proxy says counts. Everybody else could write any address into a header.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

__all__ = ["client_address", "has_proxy_elsewhere", "is_trusted"]


def is_trusted(address: str, trusted: tuple[str, ...]) -> bool:
    """Return whether an IP address is one of the trusted ones, or in a trusted network."""
    if address in trusted:
        return True
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None) or parsed
    return any(mapped in ip_network(each) for each in trusted)


def has_proxy_elsewhere(trusted: tuple[str, ...]) -> bool:
    """Return whether a trusted proxy can connect from another machine."""
    return not all(ip_network(each).is_loopback for each in trusted)


def client_address(peer: str, forwarded_for: str, trusted: tuple[str, ...]) -> str:
    """Return the address of a client: the last one in ``X-Forwarded-For`` that is not a trusted proxy's.

    Args:
        peer: The address of the connection.
        forwarded_for: The ``X-Forwarded-For`` header; each proxy appends the address that it was called from.
        trusted: The addresses and networks of trusted proxies.

    Returns:
        ``peer`` if that is not trusted. Otherwise the address of the first hop, from the end, that is not trusted; of
        the hop before it, if the header has no address there.
    """
    if not forwarded_for:
        return peer
    hops = forwarded_for.split(",")
    while hops and is_trusted(peer, trusted):
        hop = _read_hop(hops.pop())
        if hop is None:
            break
        peer = hop
    return peer


def _read_hop(text: str) -> str | None:
    """Return the IP address of a hop, which may have a port; None if it is no address."""
    text = text.strip()
    host = text[1:].partition("]")[0] if text.startswith("[") else text
    for candidate in (host, host.rpartition(":")[0]):
        try:
            return str(ip_address(candidate))
        except ValueError:
            continue
    return None
