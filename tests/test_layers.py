"""Who may know whom: the imports of the app, read from its sources."""

import ast
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

APP = Path(__file__).resolve().parents[1] / "apps" / "fastsam3d"
MODULES = {path.relative_to(APP).with_suffix("").as_posix(): path for path in sorted((APP / "lib").rglob("*.py"))}
MAY_PRINT = {"lib/cli"}


def imports(source: str, module: str) -> Iterator[tuple[str, bool]]:
    """Yields (what is imported, whether the import is relative); "lib/sam/grid" for the app's own, else a dotted name.

    Args:
        source: the module's text.
        module: its path below the app, without suffix.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, False
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", False
        elif isinstance(node, ast.ImportFrom):
            base = PurePosixPath(module).parents[node.level - 1]
            for alias in node.names:
                yield (base / (node.module or "").replace(".", "/") / alias.name).as_posix(), True


def offences(source: str, module: str) -> list[str]:
    """Returns what a module must not do: imports across the layers, and printing."""
    found = []
    layer = PurePosixPath(module).parts[1] if module.count("/") > 1 else ""
    for name, relative in imports(source, module):
        own = name if relative else name.replace(".", "/")
        if layer == "sam" and not relative and name.split(".")[0] in ("monailabel", "lib"):
            found.append(f"{module} imports {name}: lib/sam knows neither MONAI Label nor the app around it")
        if layer == "sam" and relative and not own.startswith("lib/sam/"):
            found.append(f"{module} imports {name}: relative imports of lib/sam stay inside it")
        for one, other in (("infers", "trainers"), ("trainers", "infers")):
            if layer == one and own.startswith(f"lib/{other}"):
                found.append(f"{module} imports {name}: {one} and {other} do not know each other")
    if module not in MAY_PRINT:
        calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        if any(isinstance(func, ast.Name) and func.id == "print" for func in calls):
            found.append(f"{module} prints: commands use lib/cli.py's emit, everything else logging")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_keeps_to_its_layer(module):
    assert offences(MODULES[module].read_text(), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lib/sam/grid", "import monailabel.config"),
        ("lib/sam/grid", "def f():\n    from monailabel import config"),
        ("lib/sam/grid", "from lib.conf import AppConf"),
        ("lib/sam/grid", "from ..conf import AppConf"),
        ("lib/sam/networks/layers", "from ... import conf"),
        ("lib/infers/interactive", "from ..trainers import distill"),
        ("lib/infers/interactive", "from .. import trainers"),
        ("lib/trainers/distill", "from lib.infers.request import parse_prompts"),
        ("lib/conf", "print('hello')"),
        ("lib/commands/segment", "def f():\n    print('hello')"),
    ],
)
def test_each_rule_catches_its_breach(module, source):
    assert len(offences(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lib/sam/networks/layers", "from .. import grid\nfrom ..spec import SamSpec\nimport torch"),
        ("lib/sam/training/data", "from ..clicks import next_click"),
        ("lib/infers/interactive", "from ..sam import weights\nfrom monailabel.interfaces import app"),
        ("lib/cli", "print('hello')"),
    ],
)
def test_what_the_rules_allow(module, source):
    assert offences(source, module) == []
