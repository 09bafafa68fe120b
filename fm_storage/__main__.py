"""The program ``fm-storage``, also as ``python -m fm_storage``."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line; Ctrl-C ends it with 130 and one line, whenever it comes."""
    try:
        import signal

        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if ours:  # nothing to be closed is open before the command line is there
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    except KeyboardInterrupt:
        os._exit(130)
    import fm_storage.cli.common

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        fm_storage.cli.main()
    finally:
        if ours:  # all is closed, and the interpreter would end in a traceback
            signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
