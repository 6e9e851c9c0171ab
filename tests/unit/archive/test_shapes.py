"""What a path asks for is what the archive's hop 1 makes of it, whatever the spelling."""

from collections import Counter
from itertools import islice

from twisted.trial.unittest import SynchronousTestCase

from coverart.simulator.catalogue import Catalogue
from tests.support.shapes import judge, shapes


class ShapesTests(SynchronousTestCase):
    """request_path and the simulator's hop 1, which share no code."""

    def test_ten_thousand(self) -> None:
        """Where hop 1 redirects, both mean the same file; where it refuses, both refuse."""
        catalogue = Catalogue(seed=11, releases=60)
        found = Counter(judge(catalogue, path) for path in islice(shapes(catalogue, 1), 10_000))
        self.assertGreater(found[307], 3_000)
        self.assertGreater(found[404], 300)
        self.assertGreater(found[400], 1_000)
