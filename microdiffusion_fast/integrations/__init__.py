"""Adapters to other tools, one module each, imported only by those who use it.

`integrations.diffusers`, `integrations.torchmetrics` and `integrations.napari` need the extra of
the same name.
"""

from __future__ import annotations

import importlib.util

__all__ = ["require"]


def require(extra: str, *modules: str) -> None:
    """Says in one line how to install what an adapter stands on, if it is missing.

    Args:
        extra: the extra of this package that brings them.
        modules: top-level modules to look for; default the one named like the extra.

    Raises:
        ImportError: one is not installed.
    """
    for module in modules or (extra,):
        try:
            found = importlib.util.find_spec(module) is not None
        except ValueError:  # in sys.modules, but blocked or half made
            found = False
        if not found:
            command = f"pip install 'microdiffusion-fast[{extra}]'"
            raise ImportError(f"{module} is not installed: {command}", name=module)
