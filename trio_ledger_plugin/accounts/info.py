"""The ILP address and the asset that a server gives its accounts."""

from __future__ import annotations

from typing import Any, Final

from attrs import field, frozen

from ..options.checked import CheckedOptions
from ..options.fields import NAME, NESTED, VALIDATOR, Validator

__all__ = ["HOST_INFO", "HostInfo"]


def _is_ilp_address(value: object) -> bool:
    from ..codec.ilp import is_address  # noqa: PLC0415 (for servers of many accounts only)

    return isinstance(value, str) and is_address(value)


def _is_scale(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


@frozen(eq=False, repr=False)
class HostInfo(CheckedOptions):
    """The ILP address and the asset that a server gives its accounts (RFC-0031).

    Attributes:
        client_address: The server's own ILP address; its accounts' addresses are below it.
        asset_scale: The number of decimal places that amounts have in the asset's own unit, 0 to 255.
        asset_code: The asset, such as ``"XRP"``.

    Raises:
        InvalidFieldsError: Fields are wrong. The text names each.
    """

    client_address: str = field(
        metadata={VALIDATOR: Validator("an ILP address, such as example.parent", _is_ilp_address)}
    )
    asset_scale: int = field(metadata={VALIDATOR: Validator("a whole number from 0 to 255", _is_scale)})
    asset_code: str = field(metadata=NAME)


#: The metadata of an option that is a ``HostInfo`` or None.
HOST_INFO: Final[dict[str, Any]] = {
    VALIDATOR: Validator("HostInfo or None", lambda value: value is None or isinstance(value, HostInfo)),
    NESTED: HostInfo,
}
