"""What the package imports: the rest of the contract that import-linter checks (pyproject.toml)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_taylor_prune

PACKAGE = Path(lightning_taylor_prune.__file__).parent

DISPATCH = (
    "torch._subclasses",
    "torch._dispatch",
    "torch._C.DispatchKey",
    "torch._C._TorchDispatchModeKey",
    "torch.fx.experimental.proxy_tensor",
    "torch.utils._python_dispatch",
)

OPTIONAL = ("hydra", "omegaconf", "matplotlib", "jinja2", "rich", "torchvision", "tensorboard", "wandb", "mlflow")

# `__import__` sees each import statement, also of a library that Lightning has loaded before.
CODE = """
import builtins, json, sys
import lightning.pytorch

load, asked, before = builtins.__import__, set(), set(sys.modules)

def note(name, globals=None, *args, **kwargs):
    if (globals or {}).get("__name__", "").startswith("lightning_taylor_prune"):
        asked.add(name.partition(".")[0])
    return load(name, globals, *args, **kwargs)

builtins.__import__ = note
import lightning_taylor_prune
builtins.__import__ = load
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"asked": sorted(asked), "loaded": sorted(loaded)}))
"""


def torch_names(source: str) -> Iterator[str]:
    """Yield the dotted name of everything of torch that some code imports or reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def uses_dispatch(source: str) -> bool:
    return any(f"{name}.".startswith(f"{private}.") for name in torch_names(source) for private in DISPATCH)


@pytest.mark.parametrize(
    "source",
    [
        "import torch._subclasses.fake_tensor",
        "from torch._subclasses import FakeTensor",
        "from torch.utils import _python_dispatch",
        "x = torch._C.DispatchKey.PreDispatch",
        "def f():\n    from torch._dispatch.python import enable_python_dispatcher",
    ],
)
def test_private_dispatch_is_found_however_it_is_written(source: str) -> None:
    assert uses_dispatch(source)


def test_only_tracing_uses_private_dispatch_of_torch() -> None:
    users = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if uses_dispatch(path.read_text())}
    assert users == {"tracing"}


@pytest.fixture(scope="module")
def imports() -> dict[str, list[str]]:
    """Top-level names that a fresh import of the package asks for, and those it loads beyond Lightning's own."""
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("library", OPTIONAL)
def test_package_does_not_ask_for_optional_library(library: str, imports: dict[str, list[str]]) -> None:
    assert library not in imports["asked"]


@pytest.mark.parametrize("library", OPTIONAL)
def test_package_loads_no_optional_library_beyond_what_lightning_does(
    library: str, imports: dict[str, list[str]]
) -> None:
    assert library not in imports["loaded"]


def test_import_statements_are_seen(imports: dict[str, list[str]]) -> None:
    assert {"torch", "lightning", "numpy"} <= set(imports["asked"])
