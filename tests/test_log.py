"""A log message is written with any parameters, is one line, and contains no credential."""

import decimal
import logging
from typing import Any

import pytest

from trio_ledger_plugin import PluginServices, RemoteError, loopback_pair
from trio_ledger_plugin.log import RedactingLog, StdlibLog, escape, format_message
from trio_ledger_plugin.secret import Secret

CANARY = "canary-7f3a"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class Wrong:
    def __repr__(self) -> Any:
        return 5


class Sly(str):
    __slots__ = ()

    def isprintable(self) -> bool:
        return True

    def __str__(self) -> str:
        return self


class Multiline:
    def __repr__(self) -> str:
        return "one\ntwo"


def cycle() -> list[Any]:
    items: list[Any] = [1]
    items.append({"self": items})
    return items


def nested(levels: Any) -> list[Any]:
    items: list[Any] = []
    for _ in range(levels):
        items = [items]
    return items


@pytest.mark.parametrize(
    ("message", "params", "text"),
    [
        ("plain", (), "plain"),
        ("%s", ("text",), "text"),
        ("%s", (5,), "5"),
        ("%s", (None,), "None"),
        ("%s", (b"bytes",), "b'bytes'"),
        ("%s", (ValueError("why"),), "why"),
        ("%d", (5,), "5"),
        ("%d", (1.5,), "1.5"),
        ("%d", (True,), "1"),
        ("%d", (decimal.Decimal("1.50"),), "1.50"),
        ("%d", (float("nan"),), "NaN"),
        ("%d", (float("-inf"),), "-Infinity"),
        ("%d", ("five",), "NaN"),
        ("%d", (None,), "NaN"),
        ("%j", ({"a": [1, "b", None, True]},), '{"a":[1,"b",null,true]}'),
        ("%j", ("é",), '"é"'),
        ("%j", (cycle(),), "[Circular]"),
        ("%j", ([float("nan"), *cycle()],), "[Circular]"),
        ("%j", (float("nan"),), "null"),
        ("%j", ({"a": [float("inf"), (1.5, -float("inf"))], "b": "NaN"},), '{"a":[null,[1.5,null]],"b":"NaN"}'),
        ("%j", ({"raw": b"\x00"},), '{"raw":"b\'\\\\x00\'"}'),
        ("%j", ({(1, 2): 3},), "{(1, 2): 3}"),
        ("%o", ({"a": [1, (2,)], "b": "c"},), "{'a': [1, (2,)], 'b': 'c'}"),
        ("%o", ([],), "[]"),
        ("%o", (cycle(),), "[1, {'self': [Circular]}]"),
        ("%O", ({"a": 1},), "{'a': 1}"),
        ("100%%", (), "100%"),
        ("%%s", ("extra",), "%s extra"),
        ("%%%s", ("text",), "%text"),
        ("%s and %s", ("one",), "one and %s"),
        ("%s%d%j%o%O", (), "%s%d%j%o%O"),
        ("%s", ("one", "two", 3, {"k": "v"}), "one two 3 {'k': 'v'}"),
        ("%x %i %", ("one",), "%x %i % one"),
        ("%s", ("%d", 5), "%d 5"),
        (5, ("one",), "5 one"),
        (ValueError("why"), (), "why"),
    ],
)
def test_each_token_formats_its_parameter(message: Any, params: Any, text: Any) -> None:
    assert format_message(message, *params) == text


def test_pretty_print_breaks_only_long_values_between_items() -> None:
    assert format_message("%O", {"first": "x" * 60, "then": ["y" * 60, {"z": 1}]}) == (
        f"{{\n  'first': '{'x' * 60}',\n  'then': ['{'y' * 60}', {{'z': 1}}]\n}}"
    )
    assert format_message("%O", [["x" * 60, "y" * 60]]) == (f"[\n  [\n    '{'x' * 60}',\n    '{'y' * 60}'\n  ]\n]")
    assert format_message("%O", ("x" * 120,)) == f"(\n  '{'x' * 120}',\n)"


@pytest.mark.parametrize("token", ["%s", "%d", "%j", "%o", "%O", ""])
@pytest.mark.parametrize(
    "param",
    [
        Broken(),
        [Broken(), "kept"],
        {Broken(): Broken()},
        Wrong(),
        cycle(),
        nested(100_000),
        "\ud800",
        b"\xff",
        float("nan"),
        10**5000,
        [10**5000],
        Sly("\n"),
        {1: {2, 3}},
    ],
    ids=lambda param: type(param).__name__,
)
def test_no_parameter_makes_formatting_fail(token: Any, param: Any) -> None:
    text = format_message(f"before {token} after", param)
    assert text.startswith("before ")
    assert "after" in text
    text.encode()


def test_parameters_are_shown_if_the_message_cannot_be() -> None:
    message: Any = Broken()
    assert format_message(message, "kept") == "<unprintable> kept"


def test_broken_item_does_not_hide_the_others() -> None:
    assert format_message("%o %O", [Broken(), "kept"], {"k": Broken()}) == (
        "[<unprintable>, 'kept'] {'k': <unprintable>}"
    )


def test_nesting_is_shown_to_a_limited_depth() -> None:
    assert format_message("%o", nested(30)) == "[" * 10 + "[...]" + "]" * 10


@pytest.mark.parametrize("token", ["%s", "%d", "%j", "%o", ""])
@pytest.mark.parametrize(
    "param",
    [
        "\r\nERROR forged \x1b[2J\x7f\x85\x9b\u2028\u202e\0\U000e0001",
        Sly("\nforged"),
        {"\nkey": "\nvalue"},
        {"\x7f": ["\x9b", "\ud800"]},
        Multiline(),
        [Multiline()],
        ValueError("\nforged"),
        ("\U000e0001",),
    ],
    ids=lambda param: type(param).__name__,
)
def test_peer_cannot_forge_a_log_line(token: Any, param: Any) -> None:
    assert format_message(token, param).isprintable()


def test_peer_cannot_forge_a_line_in_a_pretty_print() -> None:
    text = format_message("%O", {"\nkey": Multiline(), "long": ["\nforged \x1b" * 20, "x" * 99]})
    assert all(line.isprintable() for line in text.split("\n"))
    assert not [line for line in text.split("\n") if line.lstrip().startswith(("key", "two", "forged"))]


def test_escaped_json_is_still_json() -> None:
    assert format_message("%j", "\x7f\x9b\U000e0001") == '"\\u007f\\u009b\\udb40\\udc01"'


def test_escape_leaves_printable_text_unchanged() -> None:
    assert escape("a é 漢 😀") == "a é 漢 😀"
    assert escape("a\tb\\\ud800") == "a\\tb\\\\ud800"


def test_default_log_uses_standard_levels_and_names_the_caller(caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, "trio_ledger_plugin")
    default = StdlibLog()
    default.debug("%s", 1)
    default.info("%s", 2)
    default.warn("50%% of %s", 3)
    default.error("%j", {"a": 4})
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("trio_ledger_plugin", "DEBUG", "1"),
        ("trio_ledger_plugin", "INFO", "2"),
        ("trio_ledger_plugin", "WARNING", "50% of 3"),
        ("trio_ledger_plugin", "ERROR", '{"a":4}'),
    ]
    assert {record.filename for record in caplog.records} == {"test_log.py"}


def test_default_log_accepts_another_logger(caplog: Any) -> None:
    StdlibLog(logging.getLogger("application.plugin")).error("text")
    assert [record.name for record in caplog.records] == ["application.plugin"]


class Counting:
    def __init__(self) -> None:
        self.shown = 0

    def __str__(self) -> str:
        self.shown += 1
        return "shown"


@pytest.mark.parametrize("wrap", [lambda log: log, lambda log: RedactingLog(log, [])], ids=["plain", "safe"])
def test_message_below_the_level_is_not_formatted(wrap: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "trio_ledger_plugin")
    param = Counting()
    log = wrap(StdlibLog())
    log.debug("%s", param)
    assert param.shown == 0
    log.info("%s", param)
    assert param.shown == 1


class ListLog:
    """An application's log with its own formatter, as in RFC-0024, that keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def debug(self, message: Any, *params: object) -> None:
        self.lines.append(("debug", format_message(message, *params)))

    def info(self, message: Any, *params: object) -> None:
        self.lines.append(("info", format_message(message, *params)))

    def warn(self, message: Any, *params: object) -> None:
        self.lines.append(("warn", format_message(message, *params)))

    def error(self, message: Any, *params: object) -> None:
        self.lines.append(("error", format_message(message, *params)))


def test_each_level_reaches_the_application_as_formatted_text() -> None:
    target = ListLog()
    safe = RedactingLog(target, [])
    safe.debug("%s%%", "%s")
    safe.info("%d", 1)
    safe.warn("%j", "%%")
    safe.error("%s")
    assert target.lines == [("debug", "%s%"), ("info", "1"), ("warn", '"%%"'), ("error", "%s")]


@pytest.mark.parametrize(
    "canary", [CANARY, 'it\'s "quoted" \\ too', "tab\there", "schlüssel-é", "\x7f\x9besc", "a" * 200]
)
@pytest.mark.parametrize("token", ["%s", "%j", "%o", "%O", ""])
def test_no_credential_reaches_the_log(canary: Any, token: Any) -> None:
    target = ListLog()
    log = RedactingLog(target, [Secret("other-secret"), Secret(canary)])
    for param in (
        canary,
        f"Bearer {canary}",
        {"token": canary, canary: 1},
        ValueError(canary),
        canary.encode(),
        [b"\x01" * 90 + canary.encode() + b"\x02" * 90],
        [f"{canary} 'both' \"quotes\"", f'{canary} "one"'],
    ):
        log.info(token, param)
    lines = "".join(line for _, line in target.lines)
    assert lines.count("***") == 9
    for form in (canary, escape(canary), repr(canary)[1:-1], repr(canary.encode())[2:-1]):
        assert form not in lines


def test_credential_in_the_message_itself_is_redacted() -> None:
    target = ListLog()
    RedactingLog(target, [Secret(CANARY)]).warn(f"refused {CANARY} twice {CANARY}")
    assert target.lines == [("warn", "refused *** twice ***")]


def test_longer_of_two_secrets_is_redacted_completely() -> None:
    target = ListLog()
    RedactingLog(target, [Secret("abcd"), Secret("abcd-tail")]).info("abcd-tail abcd")
    assert target.lines == [("info", "*** ***")]


@pytest.mark.parametrize("short", ["", "abc"])
def test_very_short_secret_is_not_redacted(short: Any) -> None:
    target = ListLog()
    RedactingLog(target, [Secret(short)]).info("abc \\x")
    assert target.lines == [("info", "abc \\x")]


class FullDisk:
    """An application's log that fails, as on a full disk."""

    def debug(self, message: str, *params: object) -> None:
        raise OSError(f"no space left for {message}")

    info = warn = error = debug


async def test_failing_log_is_reported_and_stops_nothing(caplog: Any) -> None:
    """One request whose handler fails would end the plugin, and every transfer in flight with it."""

    async def fail(data: bytes) -> bytes:
        raise ValueError(CANARY)

    async with loopback_pair(PluginServices(log=FullDisk())) as (first, second):
        second.register_data_handler(fail)
        for _ in range(2):
            with pytest.raises(RemoteError):
                await first.send_data(b"")
    assert [record.getMessage() for record in caplog.records] == ["the application's log failed: OSError"] * 2
