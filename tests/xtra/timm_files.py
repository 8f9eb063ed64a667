"""Files of timm, loaded by themselves: the whole package does not import without a torchvision built for this torch."""

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest


def _path(name: str) -> Path:
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("timm, whose transforms are the oracle, is not installed: make setup installs it")
    return Path(found.submodule_search_locations[0]) / "data" / f"{name}.py"


def timm_method(name: str, class_name: str, method: str, **names: Any) -> Any:
    """A static method out of timm/data/NAME.py, which itself does not import without torchvision; `names` are what it
    finds of other modules. Skips the test where timm is not installed."""
    tree = ast.parse(_path(name).read_text())
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    (made,) = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == method]
    made.decorator_list = []
    exec(compile(ast.Module([made], []), name, "exec"), names)
    return names[method]


def timm_file(name: str) -> Any:
    """The module timm/data/NAME.py, newly made. Skips the test where timm is not installed."""
    path = _path(name)
    spec = importlib.util.spec_from_file_location(f"timm_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Queue:
    """Stands for the module `random`: returns given values, as the draws that timm would make."""

    def __init__(self, *unit: float) -> None:
        self.unit = list(unit)

    def random(self) -> float:
        return self.unit.pop(0)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit.pop(0)

    def randint(self, low: int, high: int) -> int:
        return low + int(self.unit.pop(0) * (high - low + 1))
