"""``python -m fm_storage`` is ``fm-storage``."""

from __future__ import annotations

from fm_storage.cli import main

if __name__ == "__main__":
    main()
