"""The door of a package: its `__init__.py` exports the names in `__init__.pyi`, and imports each on first use.

The stub is the only list of names: type checkers read it, and `__getattr__` (PEP 562) imports from it. So `import
xtra.probe` costs nothing, and names that are not in the stub cannot be imported from the package.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path


def door(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of the package whose `__init__.py` is `file`.

    The stub may only hold lines `from .module import name as name` and `from . import module as module`.
    """
    home: dict[str, str] = {}  # name -> the module that defines it; "" for a module of the package
    for line in ast.parse(Path(file).with_suffix(".pyi").read_text()).body:
        if isinstance(line, ast.ImportFrom):
            home |= {alias.name: line.module or "" for alias in line.names}

    def get(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if home[name]:
            found = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        else:
            found = importlib.import_module(f"{package}.{name}")
        vars(sys.modules[package])[name] = found  # so that `get` is called once for each name
        return found

    return get, lambda: sorted(home), sorted(home)
