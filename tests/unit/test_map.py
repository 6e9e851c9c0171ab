"""The map of the code in coverart/__init__.py is true: every module is on it, imports go one way."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import coverart

PACKAGE = Path(coverart.__file__).parent


def levels() -> dict[str, int]:
    """Each module's level on the map: the words left of the wide gap, line by line."""
    found: dict[str, int] = {}
    level = -1
    for line in (coverart.__doc__ or "").splitlines():
        match = re.fullmatch(r"( {4}| {8})([a-z_]+(?:, [a-z_]+)*),?(?: {2,}\S.*)?", line)
        if match is None:
            continue
        level += match[1] == "    "
        found.update(dict.fromkeys(re.findall("[a-z_]+", match[2]), level))
    return found


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("coverart"):
            _, _, module = (node.module or "").partition(".")
            names |= {module} if module else {alias.name for alias in node.names}
    return names - {"__version__"}


class MapTests(SynchronousTestCase):
    """What a newcomer reads first."""

    def test_every_module_is_on_the_map(self) -> None:
        """No module is missing, none is left over."""
        modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
        self.assertEqual(set(levels()), modules)

    def test_imports_go_one_way(self) -> None:
        """No module imports one further down."""
        level = levels()
        wrong = [
            f"{module} imports {name}"
            for module in level
            for name in imported(PACKAGE / f"{module}.py")
            if level.get(name, 99) > level[module]
        ]
        self.assertEqual(wrong, [])

    def test_the_simulator_stands_apart(self) -> None:
        """An independent witness: it imports nothing of what it tests."""
        for path in (PACKAGE / "simulator").glob("*.py"):
            self.assertEqual({n for n in imported(path) if not n.startswith("simulator")}, set())
