"""A hit log as nginx writes it, and lines for it."""

from __future__ import annotations

import os
from pathlib import Path

from coverart.maintenance.hit_log import Batch, HitLog
from coverart.model import Entity, ImageRef, MediaType
from coverart.store import layout
from tests.support.strategies import MBID, OTHER_MBID

REF = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=7)
IMAGE = layout.image_path(REF.at(250), MediaType.JPEG)
OTHER = ImageRef(owner=Entity.RELEASE, mbid=OTHER_MBID, image_id=8)
LINE = f"/{IMAGE}\n".encode()
OTHER_LINE = f"/{layout.image_path(OTHER.at(500), MediaType.JPEG)}\n".encode()


class Log:
    """A log as nginx writes it, and readers of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "hits.log"
        self.position = root / "hits.log.position"

    def reader(self, *, follow: bool = True) -> HitLog:
        return HitLog(self.path, self.root, follow=follow)

    def append(self, data: bytes) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(fd, data)
        os.close(fd)

    def link(self, path: str, text: str) -> None:
        os.makedirs((self.root / path).parent, exist_ok=True)
        os.symlink(text, self.root / path)

    def take_in(self, reader: HitLog) -> list[Batch]:
        """All that is there, as the leader does it."""
        batches = []
        try:
            if reader.begin():
                while (batch := reader.read()) is not None:
                    batches.append(batch)
                    reader.done(batch)
        finally:
            reader.end()
        return batches

    def hits(self, reader: HitLog | None = None) -> int:
        """How many hits are new."""
        return sum(b.hits for b in self.take_in(reader or self.reader()))
