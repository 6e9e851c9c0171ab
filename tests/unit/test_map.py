"""The map of the code is true: every file is on it, and imports only what stands above it."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import coverart

PACKAGE = Path(coverart.__file__).parent
APART = "simulator"
"""An independent witness, not on the map."""


def listed(module: str) -> list[str]:
    """What the docstring of a package lists, in its order; a folder ends with a slash."""
    told = importlib.import_module(module).__doc__ or ""
    return re.findall(r"^    ([a-z_]+/?) {2,}\S", told, re.MULTILINE)


def on_the_map() -> list[str]:
    """Every module, from what imports nothing to what nothing imports: `model`, `archive.paths`."""
    found = []
    for name in listed("coverart"):
        folder = name.removesuffix("/")
        inside = listed(f"coverart.{folder}") if name.endswith("/") else []
        found += [f"{folder}.{module}" for module in inside] or [name]
    return found


@functools.cache
def modules() -> dict[str, Path]:
    """Every file of the package that holds code, by its name."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    named = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}
    return {name: path for name, path in named.items() if not name.startswith(APART)}


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "coverart":
            above = (node.module or "").removeprefix("coverart").strip(".")
            for alias in node.names:
                module = f"{above}.{alias.name}".strip(".")
                names.add(module if module in modules() else above)
        elif isinstance(node, ast.Import):
            names |= {
                alias.name.removeprefix("coverart.")
                for alias in node.names
                if alias.name.startswith("coverart.")
            }
    return names - {""}


class MapTests(SynchronousTestCase):
    """What a newcomer reads first."""

    def test_every_module_is_on_the_map(self) -> None:
        """No module is missing, none is left over, none stands twice."""
        self.assertEqual(sorted(on_the_map()), sorted(modules()))

    def test_imports_go_one_way(self) -> None:
        """No module imports one further down."""
        order = {name: place for place, name in enumerate(on_the_map())}
        wrong = [
            f"{module} imports {name}"
            for module, path in modules().items()
            for name in imported(path)
            if order.get(name, len(order)) >= order[module]
        ]
        self.assertEqual(wrong, [])

    def test_the_simulator_stands_apart(self) -> None:
        """It imports nothing of what it tests."""
        for path in (PACKAGE / APART).glob("*.py"):
            self.assertEqual({n for n in imported(path) if not n.startswith(APART)}, set())

    def test_a_folder_holds_its_story_and_nothing_else(self) -> None:
        """Nothing runs because a folder is imported."""
        for path in PACKAGE.glob("*/__init__.py"):
            self.assertEqual(len(ast.parse(path.read_text()).body), 1, path)
