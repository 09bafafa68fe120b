"""TLS: asked for, verified, and refused where the other end cannot."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from typing import Any

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import ConnectionFailed
from fm_storage.migrate import Migrator
from fm_storage.postgres import Pool
from tests.fix_postgres import make_base, test_account


@pytest.fixture
def certificate():
    """Give the paths of a key and of its self-signed certificate for localhost."""
    base = make_base("fm-tls-")
    key, cert = base / "server.key", base / "server.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    for path in (key, cert):
        test_account().owns(path)
    yield key, cert
    shutil.rmtree(base, ignore_errors=True)


async def test_the_line_is_encrypted_and_the_peer_verified(
    empty_dsn, pgbouncer, certificate
):
    """Sslmode words and an SSLContext; an unknown authority is refused."""
    key, cert = certificate
    through = pgbouncer(
        empty_dsn,
        mode="session",
        client_tls_sslmode="allow",
        client_tls_key_file=str(key),
        client_tls_cert_file=str(cert),
    )
    dsn = through.replace("127.0.0.1", "localhost")
    context = ssl.create_default_context(cafile=str(cert))
    for how in ("require", context):
        async with Pool(PostgresConfig(dsn=dsn, ssl=how)) as pool:
            assert await pool.fetchval("SELECT 1") == 1
            async with pool.acquire() as connection:
                raw: Any = connection.raw
                transport = raw._transport
                assert transport.get_extra_info("ssl_object") is not None
        # Migrations look through the same line.
        assert await Migrator(PostgresConfig(dsn=dsn, ssl=how)).status()
    stranger = ssl.create_default_context()
    with pytest.raises(ConnectionFailed, match="not trusted") as caught:
        await Pool(PostgresConfig(dsn=dsn, ssl=stranger)).open()
    assert not caught.value.retryable
    with pytest.raises(ConnectionFailed, match="not trusted"):
        await Migrator(PostgresConfig(dsn=dsn, ssl=stranger)).status()


async def test_tls_is_not_given_up_in_silence(server):
    """A server without TLS is refused when TLS was asked for."""
    with pytest.raises(ConnectionFailed):
        await Pool(PostgresConfig(dsn=server.tcp_dsn, ssl="require")).open()
