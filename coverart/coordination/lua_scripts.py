"""
Lua scripts that Redis runs, each atomic, as they lie in `.lua` files.

A line `-- include NAME` puts the text of another file of the folder in front.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import attrs

_INCLUDE = re.compile(r"^-- include (\w+)$", re.MULTILINE)


@attrs.frozen
class Script:
    """A Lua script, sent by its hash once the server knows it (EVALSHA)."""

    text: str
    sha: str = attrs.field(init=False)

    @sha.default
    def _hash(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def load_scripts(folder: Path) -> dict[str, Script]:
    """The scripts of a folder, by the names of their files without `.lua`."""
    texts = {path.stem: path.read_text() for path in folder.glob("*.lua")}

    def parts(name: str) -> list[str]:
        included = [part for each in _INCLUDE.findall(texts[name]) for part in parts(each)]
        return [*included, name]

    return {
        name: Script("\n".join(texts[part] for part in dict.fromkeys(parts(name))))
        for name in texts
    }
