"""The orders of eviction, over plain bytes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.index.eviction_order import MOST_USES, ByAge, ByUse, score, worth
from coverart.model import FileEntry


def entry(size_bytes: int = 15_000, stored_at: float = 0.0) -> FileEntry:
    """A file."""
    return FileEntry(size_bytes=size_bytes, stored_at=stored_at)


class ScoreTests(SynchronousTestCase):
    """What a file is worth."""

    def test_small_is_worth_more(self) -> None:
        """Room is worth most where many files fit; the difference ends at a block."""
        self.assertGreater(worth(15_000), worth(60_000))
        self.assertGreater(worth(60_000), worth(5_000_000))
        self.assertEqual(worth(1), worth(4096))
        self.assertGreaterEqual(worth(4 << 30), 64)

    @given(
        size=st.integers(1, 1 << 32), uses=st.integers(1, MOST_USES), level=st.integers(0, 1 << 40)
    )
    @settings(deadline=None)
    def test_uses_are_the_last_digit(self, size: int, uses: int, level: int) -> None:
        """The uses can be read from the score, which a double keeps exactly and uses only raise."""
        found = score(size, uses, level)
        self.assertEqual(found % 16, uses)
        self.assertEqual(int(float(found)), found)
        if uses < MOST_USES:
            self.assertGreater(score(size, uses + 1, level), found)


class ByUseTests(SynchronousTestCase):
    """`least-useful`."""

    def test_large_and_unused_goes_first(self) -> None:
        """Of files used alike the largest goes; uses save a file, and do not save all for ever."""
        queue = ByUse()
        for key, size in ((b"small", 15_000), (b"large", 5_000_000), (b"asked", 5_000_000)):
            queue.put(key, entry(size))
        queue.use(b"asked", entry(5_000_000), 3)
        self.assertEqual(queue.first(3), [b"large", b"asked", b"small"])
        self.assertEqual(queue.first(1), [b"large"])

    def test_what_is_not_used_sinks(self) -> None:
        """The level rises with each eviction, so that a file once loved goes after a time."""
        queue = ByUse()
        queue.put(b"loved", entry(100_000))
        queue.use(b"loved", entry(100_000), 2)
        for turn in range(1000):
            key = b"new%d" % turn
            queue.put(key, entry(100_000))
            (first,) = queue.first(1)
            queue.remove(first, evicted=True)
            if first == b"loved":
                return
        self.fail("never evicted")

    def test_removed_is_gone(self) -> None:
        """A file removed by hand neither comes up again nor moves the level."""
        queue = ByUse()
        queue.put(b"a", entry())
        queue.put(b"b", entry())
        queue.remove(b"a", evicted=False)
        queue.use(b"a", entry(), 5)
        self.assertEqual(queue.first(5), [b"b"])
        queue.put(b"a", entry())
        self.assertEqual(set(queue.first(5)), {b"a", b"b"})


class ByAgeTests(SynchronousTestCase):
    """`oldest`."""

    def test_by_download(self) -> None:
        """The one downloaded first goes first; one stored anew is as young as that."""
        held = {b"a": 3.0, b"b": 1.0, b"c": 2.0}
        queue = ByAge(held.get)
        for key, stored_at in held.items():
            queue.put(key, entry(stored_at=stored_at))
        held[b"b"] = 9.0
        queue.put(b"b", entry(stored_at=9.0), 1.0)
        self.assertEqual(queue.first(2), [b"c", b"a"])
        self.assertEqual(queue.first(9), [b"c", b"a", b"b"])
        del held[b"c"]
        self.assertEqual(queue.first(1), [b"a"])
