"""The covers that simulated archives of the tests show."""

from __future__ import annotations

from coverart.simulator.catalogue import Image
from coverart.simulator.draw import Studio
from coverart.simulator.service import Simulator

STUDIO = Studio(variants=8, max_bytes=512 * 2**20)
"""Eight drawings, shared by all tests: the bytes still differ from image to image."""


def whole(sim: Simulator, image: Image | None, size: int | None = 250) -> bytes:
    """The bytes of an image in the archive. :param size: None for the original."""
    assert image is not None
    return sim.studio.archive_bytes(image, size)
