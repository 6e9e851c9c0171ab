"""Every list of thumbnail sizes that can't be derived from `SIZES` agrees with it."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from coverart.model import SIZES
from coverart.simulator.catalogue import THUMBNAIL_SIZES

ROOT = Path(__file__).parents[3]
NGINX = (ROOT / "nginx/nginx.conf").read_text()
OPENAPI = (ROOT / "coverart/web/openapi.json").read_text()
SPELLED = "|".join(map(str, SIZES))


class SizesTests(SynchronousTestCase):
    """The places that docs/contributing.md names for a new size."""

    def test_nginx(self) -> None:
        """Nginx reads the same sizes from a path, and names the file of each."""
        self.assertEqual(re.findall(r"\?<size>([0-9|]+)\)", NGINX), [SPELLED] * 2)
        named = re.findall(r'^\s+(\d+)\s+"_(\d+)";$', NGINX, re.MULTILINE)
        self.assertEqual(named, [(str(size), str(size)) for size in SIZES])

    def test_openapi(self) -> None:
        """The description's patterns take the same sizes."""
        self.assertEqual(set(re.findall(r"\((\d+(?:\|\d+)+)\)", OPENAPI)), {SPELLED})

    def test_words(self) -> None:
        """The pages tell the same sizes."""
        words = f"{', '.join(map(str, SIZES[:-1]))} or {SIZES[-1]}"
        for page in ("README.md", "docs/api.md", "docs/operations.md"):
            self.assertIn(words, (ROOT / page).read_text(), page)

    def test_simulator(self) -> None:
        """The archive that coverart is tried against derives the same."""
        self.assertEqual(THUMBNAIL_SIZES, SIZES)
