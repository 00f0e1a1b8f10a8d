"""HTTP/1.1 without I/O: each shape of a message has a verdict, in whatever pieces the network delivers it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_ledger_plugin.http.heads import (
    CHUNKED,
    MAX_HEAD,
    UNTIL_CLOSE,
    BadMessageError,
    Heads,
    RequestHead,
    read_request_head,
    read_response_head,
)
from trio_ledger_plugin.http.messages import MessageReader, write_response

LIMIT = 65536
POST = b"POST /ilp HTTP/1.1\r\nHost: u\r\nAuthorization: Bearer tok\r\nContent-Type: application/octet-stream\r\n"
CHUNKS = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def feed(data, judge, *, size):
    """Read the messages in some bytes, which come in pieces; return heads, bodies, and how many bytes are left."""
    reader = MessageReader(Heads(judge))
    found, head = [], None
    for start in range(0, len(data), size):
        reader.receive(data[start : start + size])
        while True:
            head = head or reader.next_head()
            if head is None:
                break
            body = reader.next_body(head.length, LIMIT)
            if body is None:
                break
            found.append((head, body))
            head = None
    return found, reader.buffered


def read(data, judge=read_request_head, *, trailing=b""):
    """Read one message in the three ways; all must agree."""
    (whole,), left = feed(data, judge, size=len(data))
    assert left == 0
    assert feed(data, judge, size=1) == ([whole], 0)
    (first, *_), _ = feed(data + (trailing or data), judge, size=len(data) * 2)
    assert first == whole
    return whole


def refusal(data, judge=read_request_head):
    """Return the status with which a message is refused, whole and byte by byte."""
    statuses = set()
    for size in (len(data), 1):
        with pytest.raises(BadMessageError) as caught:
            feed(data, judge, size=size)
        statuses.add(caught.value.status)
    (status,) = statuses
    return status


def test_post_with_a_length_is_read():
    head, body = read(POST + b"Content-Length: 5\r\n\r\nhello")
    assert head == RequestHead(b"POST", "/ilp", 5, authorization="Bearer tok", content_type="application/octet-stream")
    assert body == b"hello"


def test_names_of_headers_have_any_case():
    head, _ = read(b"POST / HTTP/1.1\r\nhOST: u\r\nAUTHORIZATION: x\r\nCONTENT-length: 0\r\n\r\n")
    assert (head.authorization, head.length) == ("x", 0)


def test_parameters_of_the_media_type_are_ignored():
    head, _ = read(b"POST / HTTP/1.1\r\nHost: u\r\nContent-Type: Application/ILP+octet-stream; charset=x\r\n\r\n")
    assert head.content_type == "application/ilp+octet-stream"


def test_post_without_a_length_has_no_body():
    assert read(POST + b"\r\n")[1] == b""


def test_chunks_become_one_body():
    head, body = read(CHUNKS + b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: x\r\n\r\n")
    assert (head.length, body) == (CHUNKED, b"hello")


def test_bytes_behind_chunks_are_the_next_message():
    message = CHUNKS + b"1\r\nx\r\n0\r\n\r\n"
    found, left = feed(message * 3 + b"POS", read_request_head, size=1000)
    assert [body for _, body in found] == [b"x"] * 3
    assert left == 3


def test_http_1_0_is_accepted_and_closes():
    head, body = read(b"POST / HTTP/1.0\r\nHost: u\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")
    assert (head.keep_alive, body) == (False, b"hi")


def test_http_1_0_may_have_no_host():
    assert read(b"POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n")[0].keep_alive is False


@pytest.mark.parametrize(
    ("value", "keep_alive"), [(b"keep-alive", True), (b"close", False), (b"x, CLOSE", False), (b"closed", True)]
)
def test_connection_header_decides_about_the_connection(value, keep_alive):
    assert read(POST + b"Connection: " + value + b"\r\n\r\n")[0].keep_alive is keep_alive


def test_expectation_is_seen():
    head, _ = read(POST + b"Expect: 100-Continue\r\nContent-Length: 1\r\n\r\nx")
    assert head.expects_continue


def test_expectation_of_http_1_0_is_ignored():
    head, _ = read(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n")
    assert not head.expects_continue


def test_equal_lengths_count_as_one():
    assert read(POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx")[1] == b"x"


def test_target_may_be_a_whole_url():
    head, _ = read(b"POST http://example.test/a/b?c HTTP/1.1\r\nHost: u\r\n\r\n")
    assert head.path == "/a/b"


def test_one_empty_line_before_a_request_is_skipped():
    assert read(b"\r\n" + POST + b"\r\n")[0].path == "/ilp"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (POST + b"Content-Length: 1, 2\r\n\r\n", 400),
        (POST + b"Content-Length: +1\r\n\r\n", 400),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: 0x1\r\n\r\n", 400),
        (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: identity\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n", 400),
        (POST + b"X: a\r\n b\r\n\r\n", 400),
        (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n", 400),
        (POST + b"Authorization: Bearer other\r\n\r\n", 400),
        (POST + b"X: a\nContent-Length: 5\r\n\r\n", 400),
        (POST + b"X: a\rContent-Length: 5\r\n\r\n", 400),
        (POST + b"X: \x00\r\n\r\n", 400),
        (POST + b"no colon\r\n\r\n", 400),
        (POST + b"Host: v\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\nHost: u\n\n", 400),
        (b"POST / HTTP/2.0\r\nHost: u\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST /a b HTTP/1.1\r\nHost: u\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"\r\n\r\n" + POST + b"\r\n", 400),
        (b"\n" + POST + b"\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n", 400),
        (POST + b"Expect: gold\r\n\r\n", 417),
        (POST + b"X: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"a" * 100_000, 431),
        (POST + b"Content-Length: 65537\r\n\r\n", 413),
        (CHUNKS + b"10001\r\n" + bytes(65537) + b"\r\n", 413),
        (CHUNKS + b"zz\r\n", 400),
        (CHUNKS + b"1\r\nxyz\r\n", 400),
    ],
)
def test_message_with_two_readings_is_refused(data, status):
    """A proxy before this server could see another request than this server does."""
    assert refusal(data) == status


def test_longest_head_is_read_and_a_longer_one_refused():
    start = POST + b"X: "
    assert read(start + b"a" * (MAX_HEAD - len(start) - 4) + b"\r\n\r\n")[1] == b""
    assert refusal(start + b"a" * (MAX_HEAD - len(start) - 3) + b"\r\n\r\n") == 431


def test_head_without_an_end_is_refused_early():
    """A peer that sends one byte after the other would fill the memory."""
    reader = MessageReader(Heads(read_request_head))
    for _ in range(MAX_HEAD - 1):
        reader.receive(b"a")
        assert reader.next_head() is None
    reader.receive(b"a")
    with pytest.raises(BadMessageError):
        reader.next_head()


# Responses.

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"


def test_response_of_a_node_peer_is_read():
    head, body = read(OK + b"Keep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nhi", read_response_head)
    assert (head.status, head.timeout, head.keep_alive, body) == (200, 5, True, b"hi")


def test_response_in_chunks_is_read():
    assert read(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", read_response_head)[1] == b"hi"


@pytest.mark.parametrize("size", [1, 1000])
def test_response_may_end_with_the_connection(size):
    reader = MessageReader(Heads(read_response_head))
    data = b"HTTP/1.0 200 OK\r\n\r\nhello"
    head = None
    for start in range(0, len(data), size):
        reader.receive(data[start : start + size])
        head = head or reader.next_head()
    assert head is not None
    assert (head.length, head.keep_alive) == (UNTIL_CLOSE, False)
    assert reader.next_body(head.length, LIMIT) is None
    assert reader.body_at_end() == b"hello"


def test_response_until_the_end_has_a_limit():
    reader = MessageReader(Heads(read_response_head))
    reader.receive(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(LIMIT + 1))
    head = reader.next_head()
    assert head is not None
    with pytest.raises(BadMessageError):
        reader.next_body(head.length, LIMIT)


def test_interim_responses_are_passed_over():
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    assert read(interim + OK + b"Content-Length: 1\r\n\r\nx", read_response_head)[0].status == 200


def test_endless_interim_responses_are_refused():
    assert refusal(b"HTTP/1.1 100 Continue\r\n\r\n" * 20, read_response_head) == 400


def test_encoded_response_is_marked():
    head, _ = read(OK + b"Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n", read_response_head)
    assert head.encoded
    assert not head.is_wanted


@pytest.mark.parametrize("status", [204, 304])
def test_response_without_a_body_has_none(status):
    head, body = read(b"HTTP/1.1 %d X\r\nContent-Length: 7\r\n\r\n" % status, read_response_head)
    assert (head.status, body) == (status, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"X: a\r\n b\r\n\r\n",
        OK + b"X: " + b"a" * 100_000,
    ],
)
def test_response_that_is_none_is_refused(data):
    with pytest.raises(BadMessageError):
        feed(data, read_response_head, size=len(data))
    with pytest.raises(BadMessageError):
        feed(data, read_response_head, size=1)


# The dictionary of heads.


def test_known_head_is_not_judged_again():
    judged = []

    def judge(head):
        judged.append(head)
        return read_request_head(head)

    heads = Heads(judge)
    for _ in range(3):
        assert heads.read(POST + b"\r\n").path == "/ilp"
    assert len(judged) == 1


def test_remembered_heads_are_bounded():
    """A peer that changes its head with each request would fill the memory."""
    heads = Heads(read_request_head)
    for number in range(1100):
        heads.read(POST + b"X: %d\r\n\r\n" % number)
    assert len(heads._known) == 1024
    heads.read(POST + b"X: " + b"a" * 2000 + b"\r\n\r\n")
    assert len(heads._known) == 1024


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_any_cut_gives_the_same_request(body, cuts):
    data = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    reader = MessageReader(Heads(read_request_head))
    head, found, start = None, None, 0
    for size in [*cuts, len(data)]:
        reader.receive(data[start : start + size])
        start += size
        head = head or reader.next_head()
        if head is not None and found is None:
            found = reader.next_body(head.length, LIMIT)
        if start >= len(data):
            break
    assert found == body


@given(st.binary(max_size=400))
def test_any_bytes_are_a_request_or_are_refused(data):
    for judge in (read_request_head, read_response_head):
        try:
            feed(data + b"\r\n\r\n", judge, size=max(1, len(data)))
        except BadMessageError as error:
            assert 400 <= error.status < 600  # noqa: PT017 (any bytes may also be a message)


def test_response_with_a_text_is_written():
    response = write_response(405, "no", keep_alive=False, extra="Allow: POST\r\n")
    head, body = read(response, read_response_head)
    assert (head.status, head.keep_alive, body) == (405, False, b"no")


# Damaged messages.

SEEDS = [
    POST + b"Content-Length: 5\r\n\r\nhello" + POST + b"\r\n",
    CHUNKS + b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nT: x\r\n\r\n" + POST + b"Content-Length: 1\r\n\r\nx",
    b"\r\n" + POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi",
]
BYTES = [
    b"\r",
    b"\n",
    b" ",
    b"\t",
    b":",
    b",",
    b"0",
    b"9",
    b"\0",
    b"\xff",
    b"\r\n",
    b"\r\n\r\n",
    b"Content-Length: 3\r\n",
]


def outcome(data, size):
    """Return the messages that are read before the first that is refused, and with which status it is."""
    reader = MessageReader(Heads(read_request_head))
    found, head = [], None
    try:
        for start in range(0, len(data), size):
            reader.receive(data[start : start + size])
            while True:
                head = head or reader.next_head()
                body = None if head is None else reader.next_body(head.length, LIMIT)
                if head is None or body is None:
                    break
                found.append((head, body))
                head = None
    except BadMessageError as error:
        return found, error.status
    return found, head


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from(BYTES), st.booleans()), max_size=3),
    st.integers(1, 40),
)
def test_damaged_message_has_one_reading_in_any_pieces(seed, changes, size):
    """If the network's cuts decided, an attacker could choose them."""
    data = seed
    for at, piece, replaces in changes:
        where = at % (len(data) + 1)
        data = data[:where] + piece + data[where + (len(piece) if replaces else 0) :]
    whole = outcome(data, len(data))
    assert outcome(data, 1) == whole
    assert outcome(data, size) == whole
