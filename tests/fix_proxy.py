"""The proxy of the pytest plug-in, by the name under which the tests know it."""

from __future__ import annotations

from fm_storage.testing.plugin import tcp_proxy
from fm_storage.testing.proxy import TcpProxy, free_port, target_of

__all__ = ["TcpProxy", "free_port", "target_of", "tcp_proxy"]
