"""The export format of the systemd journal, read as JSON lines.

Fields may hold any bytes, behind their length; each entry becomes one line.
See https://systemd.io/JOURNAL_EXPORT_FORMATS/.
"""

from __future__ import annotations

from typing import IO, Any

import orjson

_MAX_FIELD = 64 * 1024
_LENGTH = 8


def is_journal_export(head: bytes) -> bool:
    """Return whether *head* is the beginning of ``journalctl -o export``."""
    return head.startswith((b"__CURSOR=", b"__REALTIME_TIMESTAMP="))


class JournalExport:
    """A stream whose lines are the entries of the export as JSON objects.

    Of a field longer than 64 KiB the beginning is kept.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readline(self, _size: int, /) -> bytes:
        """Return the next entry, empty behind the last one."""
        fields: dict[str, Any] = {}
        while line := self._stream.readline(_MAX_FIELD):
            name, equals, value = line.rstrip(b"\n").partition(b"=")
            if not line.endswith(b"\n"):
                self._skip_line()
            if not name and not equals:
                if fields:
                    break
                continue
            if not equals:
                value = self._counted()
            self._add(fields, name.decode("ascii", "replace"), value)
        return orjson.dumps(fields) + b"\n" if fields else b""

    def close(self) -> None:
        """Close what lies below."""
        self._stream.close()

    @staticmethod
    def _add(fields: dict[str, Any], name: str, value: bytes) -> None:
        text = value.decode("utf-8", "replace")
        known = fields.get(name)
        if known is None:
            fields[name] = text
        elif isinstance(known, list):
            known.append(text)
        else:
            fields[name] = [known, text]

    def _counted(self) -> bytes:
        """Read a value behind its length, and the end of line behind it."""
        length = int.from_bytes(self._stream.read(_LENGTH), "little")
        value = self._stream.read(min(length, _MAX_FIELD))
        left = length - len(value)
        while left > 0 and (more := self._stream.read(min(left, _MAX_FIELD))):
            left -= len(more)
        self._stream.read(1)
        return value

    def _skip_line(self) -> None:
        while (rest := self._stream.readline(_MAX_FIELD)) and not rest.endswith(b"\n"):
            pass
