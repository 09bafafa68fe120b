"""The frames that travel between the embedded engine and its clients.

One frame is a fixed header of 16 bytes, a JSON part and a raw part::

    "FMV1" | request number u32 | JSON length u32 | raw length u32 | JSON | raw

All numbers are little-endian; the raw part holds vectors as float32 (and the
term numbers of sparse vectors as uint32). Nothing is ever pickled: a frame can
carry data and no code. Shared by both sides, and so light that the engine's
process loads neither pydantic nor a client library.
"""

from __future__ import annotations

import struct

import orjson

PROTOCOL = 2
"""Version of the requests inside; an engine answers those of its own only."""
HEADER = struct.Struct("<4sIII")
MAGIC = b"FMV1"
MAX_REQUEST = 64 * 1024 * 1024
"""Bytes of one request at most; the store splits batches far below it."""
MAX_REPLY = 512 * 1024 * 1024
"""Bytes of one answer at most."""


class FrameError(Exception):
    """The other side does not speak this protocol, or exceeds its limits."""


def pack(number: int, meta: object, raw: bytes | bytearray | memoryview = b"") -> bytes:
    """Return one frame.

    Raises:
        TypeError: *meta* cannot be written as JSON.
    """
    text = orjson.dumps(meta)
    return b"".join((HEADER.pack(MAGIC, number, len(text), len(raw)), text, raw))


def split_header(header: bytes | bytearray, limit: int) -> tuple[int, int, int]:
    """Return request number and the two lengths of a frame.

    Raises:
        FrameError: It is no frame of ours, or longer than *limit*.
    """
    magic, number, meta, raw = HEADER.unpack(header)
    if magic != MAGIC:
        message = f"unknown frame {bytes(magic)!r}"
        raise FrameError(message)
    if meta + raw > limit:
        message = f"frame of {meta + raw} bytes, {limit} are allowed"
        raise FrameError(message)
    return number, meta, raw
