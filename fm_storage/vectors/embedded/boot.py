"""The command that runs a function of the embedded engine in a fresh interpreter.

The package's own ``__init__`` would load pydantic and the rest of the library;
bare package objects let the engine import its few light files alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]
_ROOTS = {"fm_storage": str(_HERE.parent), "fm_storage.vectors": str(_HERE)}

_BOOT = """
import json, sys, types
roots, paths, module, argument = json.loads(sys.argv[1])
sys.path.extend(path for path in paths if path not in sys.path)
for name, root in roots.items():
    package = types.ModuleType(name)
    package.__path__ = [root]
    sys.modules[name] = package
__import__(module, fromlist=["main"]).main(argument)
"""


def command(module: str, argument: str) -> list[str]:
    """Return the command that calls ``main(argument)`` of *module*."""
    paths = [path for path in sys.path if path]
    given = json.dumps([_ROOTS, paths, module, argument])
    return [sys.executable, "-I", "-c", _BOOT, given]
