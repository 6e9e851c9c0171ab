"""Scripts are put together of files, and an installed copy has them all."""

import configparser
import hashlib
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import coverart
from coverart.coordination.lua_scripts import load_scripts

PACKAGE = Path(coverart.__file__).parent


class LuaScriptTests(SynchronousTestCase):
    """load_scripts."""

    def test_includes(self) -> None:
        """What a script includes stands before it, each part once, and its hash is that of it all."""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "a.lua").write_text("local a = 1")
            (Path(folder) / "b.lua").write_text("-- include a\nlocal b = a")
            (Path(folder) / "c.lua").write_text("-- include a\n-- include b\nreturn b")
            scripts = load_scripts(Path(folder))
        text = "local a = 1\n-- include a\nlocal b = a\n-- include a\n-- include b\nreturn b"
        self.assertEqual(scripts["c"].text, text)
        self.assertEqual(
            scripts["c"].sha, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        )
        self.assertEqual(scripts["a"].text, "local a = 1")

    def test_installed(self) -> None:
        """Every file of the package that is no module is named as one that is installed."""
        config = configparser.ConfigParser()
        config.read(PACKAGE.parent / "setup.cfg")
        installed = {
            path
            for package, globs in config["options.package_data"].items()
            for pattern in globs.split()
            for path in PACKAGE.parent.joinpath(*package.split(".")).glob(pattern)
        }
        for path in PACKAGE.rglob("*.*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                self.assertIn(path, installed)
