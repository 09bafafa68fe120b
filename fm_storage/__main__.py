"""The program ``fm-storage``, also as ``python -m fm_storage``."""

from __future__ import annotations

import os
import signal
from importlib import import_module


def main() -> None:
    """Run the command line; Ctrl-C ends it with 130 and one line, whenever it comes."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:  # nothing to be closed is open before the command line is there
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from fm_storage.cli import main as run

    import_module("fm_storage.cli.common")
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    finally:
        if ours:  # all is closed, and the interpreter would end in a traceback
            signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
