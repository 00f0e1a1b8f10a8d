"""TLS at both ends, client certificates, and the endpoint inside another server."""

from __future__ import annotations

import ssl

import pytest
import trio
import trustme
from support.http import FULFILL, PREPARE, TOKEN, open_http, post, read_response, sending, serving

from trio_ledger_plugin import NotConnectedError


async def fulfill(data):
    return FULFILL


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def server_context(authority, *, host="127.0.0.1", client_certificates=False):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    if client_certificates:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    return context


def client_context(authority, *, certificate=False):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate:
        authority.issue_cert("client@example.org").configure_cert(context)
    return context


def secured(plugin, context):
    return sending(plugin.address, outgoing={"static_token": TOKEN, "ssl_context": context})


async def test_requests_pass_through_tls(authority):
    options = serving(incoming={"ssl_context": server_context(authority)})
    async with open_http(options, data_handler=fulfill) as server:
        assert server.address.startswith("https://127.0.0.1:")
        async with open_http(secured(server, client_context(authority))) as client:
            for _ in range(3):
                assert await client.send_data(PREPARE) == FULFILL
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(client.send_data, PREPARE)
            big = bytes(60_000)
            server.deregister_data_handler()
            server.register_data_handler(_echo)
            assert await client.send_data(big) == big


async def _echo(data):
    return data


async def test_both_ends_choose_http_1_1(authority):
    """A proxy that offers HTTP/2 as well would speak it otherwise."""
    context = client_context(authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    options = serving(incoming={"ssl_context": server_context(authority)})
    async with open_http(options, data_handler=fulfill) as server:
        host, port = server.address.removeprefix("https://").split(":")
        stream = await trio.open_ssl_over_tcp_stream(host, int(port), ssl_context=context, https_compatible=True)
        await stream.do_handshake()
        assert stream.selected_alpn_protocol() == "http/1.1"
        await stream.send_all(post(PREPARE, "Connection: close"))
        assert (await read_response(stream))[2] == FULFILL
        with trio.fail_after(3):
            assert await stream.receive_some() == b""
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("certificate", [True, False])
async def test_client_certificate_is_required_if_the_context_says_so(authority, certificate):
    options = serving(incoming={"ssl_context": server_context(authority, client_certificates=True)})
    async with open_http(options, data_handler=fulfill) as server:
        context = client_context(authority, certificate=certificate)
        async with open_http(secured(server, context)) as client:
            if certificate:
                assert await client.send_data(PREPARE) == FULFILL
            else:
                with pytest.raises(Exception, match=r"lost|nothing was sent"):
                    await client.send_data(PREPARE)
                assert server.statistics().requests_received == 0


@pytest.mark.parametrize(("host", "known"), [("other.example", True), ("127.0.0.1", False)])
async def test_untrusted_certificate_means_that_nothing_was_sent(authority, host, known):
    options = serving(incoming={"ssl_context": server_context(authority, host=host)})
    async with open_http(options, data_handler=fulfill) as server:
        context = client_context(authority if known else trustme.CA())
        async with open_http(secured(server, context)) as client:
            with pytest.raises(NotConnectedError, match=r"certificate .* is not trusted.*nothing was sent"):
                await client.send_data(PREPARE)


async def test_server_without_tls_is_named_as_the_fault(authority):
    async with open_http(serving(), data_handler=fulfill) as server:
        url = server.address.replace("http://", "https://")
        options = sending(url, outgoing={"ssl_context": client_context(authority)})
        async with open_http(options) as client:
            with pytest.raises(NotConnectedError, match="does the server speak TLS"):
                await client.send_data(PREPARE)


async def test_tls_handshake_has_a_limit(authority, clock):
    options = serving(incoming={"ssl_context": server_context(authority)})
    async with open_http(options) as server:
        host, port = server.address.removeprefix("https://").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            began = trio.current_time()
            assert await stream.receive_some() == b""
            assert trio.current_time() - began <= 5.1
