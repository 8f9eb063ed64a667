"""The door of a folder: its `__init__.py` hands out what `__init__.pyi` beside it names, and imports nothing until
asked.

The stub is the whole list, once: type checkers read it, and `__getattr__` (PEP 562) imports from it on first use. So
`import xtra.probe` costs nothing, and a name that is not in the stub cannot be had from outside.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path


def door(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of the package whose `__init__.py` is `file`.

    The stub holds lines `from .module import name as name` and `from . import module as module`, nothing else.
    """
    home: dict[str, str] = {}  # name -> the module that it is of; "" for a module of the folder
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
        vars(sys.modules[package])[name] = found  # so that it is asked for once
        return found

    return get, lambda: sorted(home), sorted(home)
