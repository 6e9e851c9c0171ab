"""The list of what tests share is whole, and test modules share nothing else."""

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import tests
from tests import support

ROOT = Path(tests.__file__).parent


def imported(path: Path) -> set[str]:
    """The modules that a file imports by name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return found


class LayoutOfTestsTests(SynchronousTestCase):
    def test_no_test_module_is_imported(self) -> None:
        """A helper of two modules is in `tests/support`, or in the folder that both are in."""
        for path in ROOT.rglob("*.py"):
            for name in imported(path):
                last = name.rpartition(".")[2]
                assert not last.startswith(("test_", "conftest")), f"{path} imports {name}"

    def test_support_is_listed(self) -> None:
        """Each module of `tests/support` is in the list in its `__init__`."""
        told = support.__doc__ or ""
        for path in (ROOT / "support").glob("*.py"):
            assert path.stem == "__init__" or path.stem in told.replace("`", " ").split(), path

    def test_integration_is_listed(self) -> None:
        """Each module of `tests/integration` is in the list in `tests/__init__`."""
        told = (tests.__doc__ or "").replace("test_hostile_…", "").replace(",", " ").split()
        for path in (ROOT / "integration").glob("test_*.py"):
            listed = path.stem in told or path.stem.startswith("test_hostile_")
            assert listed, f"tests/__init__.py does not list {path.name}"
