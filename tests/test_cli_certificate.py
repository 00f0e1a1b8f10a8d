"""The URLs that a server with a certificate shows to its clients."""

import json
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.programs import posix, run, serving

from trio_ledger_plugin.cli.certificate import NO_NAME, choose_host, names_in_certificate

pytestmark = pytest.mark.slow


def context_with(path: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    return context


def issue(path: Path, *names: str, common_name: str | None = None, expires: datetime | None = None) -> Path:
    authority = trustme.CA()
    issued = authority.issue_cert(*names, common_name=common_name, not_after=expires)
    issued.private_key_and_cert_chain_pem.write_to_path(path)
    authority.cert_pem.write_to_path(path.with_suffix(".ca"))
    return path


def test_names_of_a_certificate_are_read(tmp_path: Path) -> None:
    path = issue(tmp_path / "server.pem", "ledger.example", "*.example", "127.0.0.1", "::1")
    names = names_in_certificate(context_with(path))
    assert set(names) == {"ledger.example", "*.example", "127.0.0.1", "0:0:0:0:0:0:0:1"}


def test_certificate_that_signed_itself_is_read(tmp_path: Path) -> None:
    """As openssl makes it, with the name in the subject alone, which clients ignore."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ledger.example")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(days=1))
    more = x509.SubjectAlternativeName([x509.DNSName("ledger.example")])
    for made, names in ((builder, ()), (builder.add_extension(more, critical=False), ("ledger.example",))):
        pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        pem += key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (tmp_path / "server.pem").write_bytes(pem)
        assert names_in_certificate(context_with(tmp_path / "server.pem")) == names


def test_expired_certificate_has_no_names(tmp_path: Path) -> None:
    path = issue(tmp_path / "server.pem", "ledger.example", expires=datetime(2020, 1, 1, tzinfo=UTC))
    assert names_in_certificate(context_with(path)) == ()


@pytest.mark.parametrize(
    ("host", "names", "chosen"),
    [
        ("127.0.0.1", ("ledger.example",), "ledger.example"),
        ("127.0.0.1", ("ledger.example", "127.0.0.1"), "127.0.0.1"),
        ("localhost", ("ledger.example", "LOCALHOST"), "localhost"),
        ("a.example", ("*.example",), "a.example"),
        ("a.b.example", ("*.example",), NO_NAME),
        ("127.0.0.1", ("*.example", "ledger.example"), "ledger.example"),
        ("127.0.0.1", ("10.0.0.1",), "10.0.0.1"),
        ("127.0.0.1", ("2001:DB8:0:0:0:0:0:1",), "[2001:db8::1]"),
        ("[::1]", ("ledger.example", "0:0:0:0:0:0:0:1"), "[::1]"),
        ("127.0.0.1", (), NO_NAME),
    ],
)
def test_host_of_a_url_is_one_of_the_certificate(host: str, names: tuple[str, ...], chosen: str) -> None:
    assert choose_host(host, names) == chosen


@posix
@pytest.mark.parametrize("mode", [[], ["--http"], ["--accounts"], ["--accounts", "--http"]], ids=" ".join)
async def test_shown_command_works_with_the_certificate(mode: list[str], tmp_path: Path) -> None:
    """The first thing that a user tries would fail: a certificate for a name is not one for 127.0.0.1."""
    path = issue(tmp_path / "server.pem", "localhost")
    async with serving("--tls-cert", str(path), *mode) as server:
        await server.wait_for(r"listening on \S+(//127\.0\.0\.1:\d+)")
        line = await server.wait_for(r"try it: trio-ledger-plugin (.*) \(Ctrl-C")
        assert "@localhost:" in line
        code, _, stderr = await run(*line.split(), SSL_CERT_FILE=str(path.with_suffix(".ca")))
        assert (code, stderr) == (0, "")


@posix
async def test_certificate_without_a_usable_name_gets_a_placeholder(tmp_path: Path) -> None:
    path = issue(tmp_path / "server.pem", "*.example")
    for mode in ([], ["--accounts", "--account-mode", "username", "--store", str(tmp_path / "a.db")]):
        async with serving("--tls-cert", str(path), *mode) as server:
            await server.wait_for(rf"try it: .*@{NO_NAME}:\d+(.*)")
            await server.wait_for(f"({NO_NAME} is a host name that the certificate is for)")
    async with serving("--tls-cert", str(path), "--json") as server:
        told = json.loads(await server.wait_for(r"(\{.*\})\n"))
    assert told["url"].endswith(told["address"].partition("://")[2])
