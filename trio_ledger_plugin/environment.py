"""Options from the environment, as npm's ``ilp-plugin`` reads them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from typing import Final

from .errors import InvalidFieldsError
from .net.url import split_url
from .registry import OptionsOfVariables, canonical_plugin_name

__all__ = ["VARIABLES", "options_from_environment", "read_variables"]

#: The variables, the one that the options are read from first.
VARIABLES: Final = ("ILP_CREDENTIALS", "ILP_BTP_SERVER", "ILP_PLUGIN")

DEFAULT_SERVER: Final = "btp+ws://localhost:7768"


def options_from_environment(environ: Mapping[str, str] | None = None) -> dict[str, object]:
    """Read options for ``open_plugin`` from the environment, as npm's ``ilp-plugin`` does.

    ``ILP_PLUGIN`` names the plugin (default ``btp``), by its name in this package or at npm. ``ILP_CREDENTIALS`` has
    the plugin's options as a JSON object. If it is unset, the server is ``ILP_BTP_SERVER``, or else
    ``btp+ws://localhost:7768``, with a fresh random token as the userinfo's password. Empty variables count as unset.

    Args:
        environ: The environment; ``os.environ`` if None.

    Returns:
        A mapping with ``"plugin"`` and the options. It has the credentials as plain text. If ``open_plugin`` gets this
        very mapping and finds something wrong in it, its error names the variable.

    Raises:
        TypeError: ``environ`` is no mapping, or one of the three variables is not text.
        InvalidFieldsError: ``ILP_CREDENTIALS`` is not a JSON object, or its ``"plugin"`` is no name. The text says
            where it is no JSON, and shows nothing of it.

    Warns:
        UserWarning: ``ILP_BTP_SERVER`` has credentials, which the random token replaces.
    """
    # Not the default in the signature: help() and signatures would show the whole environment.
    environ = os.environ if environ is None else environ
    if not isinstance(environ, Mapping):
        raise TypeError(f"environ must be a mapping such as os.environ, not {type(environ).__name__}")
    for variable in VARIABLES:
        if not isinstance(value := environ.get(variable, ""), str):
            raise TypeError(f"{variable} must be text, not {type(value).__name__}")
    return read_variables(environ)


def read_variables(environ: Mapping[str, str]) -> OptionsOfVariables:
    """Read options as ``options_from_environment`` does."""
    if credentials := environ.get("ILP_CREDENTIALS"):
        options = _parse_credentials(credentials)
    else:
        server = environ.get("ILP_BTP_SERVER") or DEFAULT_SERVER
        if split_url(server)[1].strip(":"):
            warnings.warn(
                "ILP_BTP_SERVER: a random token replaces its account and token; ILP_CREDENTIALS can hold them",
                UserWarning,
                stacklevel=3,
            )
        options = {"server": _with_random_token(server)}
    name = environ.get("ILP_PLUGIN") or options.get("plugin", "btp")
    name_is_in = "ILP_PLUGIN" if environ.get("ILP_PLUGIN") else "ILP_CREDENTIALS"
    rest_is_in = next((variable for variable in VARIABLES if environ.get(variable)), "")
    if rest_is_in == "ILP_PLUGIN":
        rest_is_in = "ILP_PLUGIN without ILP_CREDENTIALS"
    try:
        options["plugin"] = canonical_plugin_name(name)
    except InvalidFieldsError as error:
        # Variables have text, so it is not ILP_PLUGIN.
        raise InvalidFieldsError(f"ILP_CREDENTIALS: {error}") from error
    return OptionsOfVariables(options, name_is_in=name_is_in, rest_is_in=rest_is_in)


def _parse_credentials(text: str) -> dict[str, object]:
    credentials: object = None
    where = ""
    # The error is not raised here: the decoder's has the whole text, and would be its context.
    try:
        credentials = json.loads(text)
    except json.JSONDecodeError as error:
        what = error.msg.partition(": ")[0]
        where = f"; this is no JSON, line {error.lineno}, column {error.colno}: {what[:1].lower()}{what[1:]}"
    except (ValueError, RecursionError):
        # A number of too many digits, or values in values without end.
        pass
    if not isinstance(credentials, dict):
        raise InvalidFieldsError(
            f"ILP_CREDENTIALS: must be a JSON object, such as the options of ilp-plugin-btp{where}"
        )
    return credentials


def _with_random_token(server: str) -> str:
    scheme, _, location, rest = split_url(server)
    return f"{scheme}://:{os.urandom(32).hex()}@{location}{rest}"
