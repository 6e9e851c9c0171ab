"""A hit log as nginx writes it, and lines for it."""

from __future__ import annotations

import os
from pathlib import Path

from coverart.model import Entity, ImageRef, MediaType
from coverart.store import layout
from tests.support.strategies import MBID, OTHER_MBID

REF = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=7)
IMAGE = layout.image_path(REF.at(250), MediaType.JPEG)
OTHER = ImageRef(owner=Entity.RELEASE, mbid=OTHER_MBID, image_id=8)
LINE = f"/{IMAGE}\n".encode()
OTHER_LINE = f"/{layout.image_path(OTHER.at(500), MediaType.JPEG)}\n".encode()


class Log:
    """A log as nginx writes it, in a cache directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "hits.log"

    def append(self, data: bytes) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(fd, data)
        os.close(fd)

    def link(self, path: str, text: str) -> None:
        os.makedirs((self.root / path).parent, exist_ok=True)
        os.symlink(text, self.root / path)
