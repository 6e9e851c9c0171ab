"""The log of nginx's direct hits: every whole line counted once, whatever happens to the file."""

import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.maintenance import hit_log
from coverart.maintenance.hit_log import BATCH_BYTES, CUT_BYTES, Batch
from coverart.model import (
    AliasKey,
    Entity,
    FileKey,
    ImageRef,
    ImageRequest,
    ListingKey,
    MediaType,
)
from coverart.store import layout
from tests.support.doubles import folder
from tests.support.hit_lines import IMAGE, LINE, OTHER, OTHER_LINE, REF, Log
from tests.support.strategies import MBID, OTHER_MBID, examples


def name_of(entity: Entity, mbid: str, name: str) -> str:
    """The path of an alias's symlink for 250 pixels."""
    request = ImageRequest(
        alias=AliasKey(entity=entity, mbid=mbid, name="front" if name == "front" else int(name)),
        size=250,
    )
    return layout.alias_path(request, MediaType.JPEG)


def uses(batches: list[Batch]) -> dict[FileKey, int]:
    """What was used how often."""
    total: Counter[FileKey] = Counter()
    for batch in batches:
        total.update(dict(batch.uses))
    return dict(total)


class HitLogCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.log = Log(folder(self))


class CountTests(HitLogCase):
    """What the lines say."""

    def said(self, *lines: bytes, follow: bool = True) -> Batch:
        self.log.append(b"".join(lines))
        (batch,) = self.log.take_in(self.log.reader(follow=follow))
        return batch

    def test_files(self) -> None:
        """A line for each hit, of images and listings."""
        listing = ListingKey(entity=Entity.EVENT, mbid=MBID)
        line = f"/{layout.listing_path(listing)}\n".encode()
        said = self.said(LINE, line, OTHER_LINE, LINE, LINE)
        self.assertEqual((said.hits, said.rubbish), (5, 0))
        self.assertEqual(dict(said.uses), {REF.at(250): 3, OTHER.at(500): 1, listing: 1})

    def test_aliases(self) -> None:
        """A use of a name is one of the image that its symlink leads to, under its own name too."""
        group = name_of(Entity.RELEASE_GROUP, OTHER_MBID, "front")
        merged = name_of(Entity.RELEASE, OTHER_MBID, "7")
        for path in (group, merged):
            self.log.link(path, layout.link_text(path, IMAGE))
        said = self.said(f"/{group}\n".encode() * 2, f"/{merged}\n".encode(), LINE)
        self.assertEqual((said.hits, dict(said.uses)), (4, {REF.at(250): 4}))

    def test_dangling(self) -> None:
        """A symlink whose image was evicted since still says which it was."""
        path = name_of(Entity.RELEASE, MBID, "front")
        self.log.link(path, layout.link_text(path, IMAGE))
        said = self.said(f"/{path}\n".encode())
        self.assertEqual(dict(said.uses), {REF.at(250): 1})

    def test_retired(self) -> None:
        """So does one that was retired since."""
        path = name_of(Entity.RELEASE, MBID, "front")
        self.log.link(path + layout.RETIRED, layout.link_text(path, IMAGE))
        said = self.said(f"/{path}\n".encode())
        self.assertEqual(dict(said.uses), {REF.at(250): 1})

    def test_gone_or_foreign(self) -> None:
        """A hit is one though nobody can tell any more of what, or the symlink is not ours."""
        path = name_of(Entity.RELEASE, MBID, "front")
        strange = name_of(Entity.RELEASE, OTHER_MBID, "front")
        self.log.link(strange, "/etc/passwd")
        said = self.said(f"/{path}\n/{strange}\n".encode())
        self.assertEqual((said.hits, said.uses), (2, {}))

    def test_nobody_asks_of_what(self) -> None:
        """Evicting by age needs no look at any symlink."""
        said = self.said(LINE, LINE, follow=False)
        self.assertEqual((said.hits, said.uses), (2, {}))

    def test_rubbish(self) -> None:
        """What is no path of the cache is counted apart, and nothing is looked up for it."""
        wrong = (
            b"\n",
            b"GET / HTTP/1.1\n",
            IMAGE.encode() + b"\n",
            b"/" + IMAGE.encode() + b" 200\n",
            b"/../../etc/passwd\n",
            b"\0" * 500 + b"\n",
            b"/\xff\xfe\n",
            LINE[:-1] + b"\r\n",
            b"/" + IMAGE.encode() + b".stale\n",
        )
        said = self.said(*wrong, LINE, b"\n")
        self.assertEqual((said.hits, said.rubbish), (1, len(wrong) + 1))


class ReadTests(HitLogCase):
    """How the log is gone through."""

    def test_missing(self) -> None:
        """A log that nginx has not made yet is no trouble, and leaves nothing behind."""
        self.assertEqual(self.log.take_in(self.log.reader()), [])
        self.assertEqual(os.listdir(self.log.root), [])

    def test_new_alone(self) -> None:
        """What was taken in is not taken in again, nor by another process, nor after a restart."""
        reader = self.log.reader()
        self.log.append(LINE * 3)
        self.assertEqual(self.log.hits(reader), 3)
        self.assertEqual(self.log.hits(reader), 0)
        self.log.append(OTHER_LINE)
        self.assertEqual(self.log.hits(), 1)
        self.assertEqual(self.log.hits(reader), 0)

    def test_half_a_line(self) -> None:
        """A line counts when its end is there."""
        self.log.append(LINE + LINE[:40])
        self.assertEqual(self.log.hits(), 1)
        self.assertEqual(self.log.hits(), 0)
        self.log.append(LINE[40:-1])
        self.assertEqual(self.log.hits(), 0)
        self.log.append(LINE[-1:])
        (batch,) = self.log.take_in(self.log.reader())
        self.assertEqual((batch.hits, batch.rubbish), (1, 0))

    def test_batches(self) -> None:
        """However long it is, no batch is larger than one may be; the log is cut off at the end."""
        count = 4 * CUT_BYTES // len(LINE)
        self.log.append(LINE * count)
        batches = self.log.take_in(self.log.reader())
        self.assertEqual(sum(b.hits for b in batches), count)
        starts = [0, *(b.end for b in batches)]
        steps = [b - a for a, b in pairwise(starts)]
        self.assertLessEqual(max(steps), BATCH_BYTES)
        self.assertGreater(len(batches), 15)
        self.assertEqual([b.full for b in batches], [True] * (len(batches) - 1) + [False])
        self.assertEqual(self.log.path.stat().st_size, 0)
        self.log.append(LINE)
        self.assertEqual(self.log.hits(), 1)

    def test_endless_line(self) -> None:
        """A line without an end is skipped, counted as one, and keeps nothing back."""
        self.log.append(b"x" * (3 * BATCH_BYTES + 17))
        first = self.log.take_in(self.log.reader())
        self.assertEqual([b.rubbish for b in first], [1, 0, 0])
        self.log.append(b"/y\n" + LINE * 2)
        (batch,) = self.log.take_in(self.log.reader())
        self.assertEqual((batch.hits, batch.rubbish), (2, 0))

    def test_remembers_lines(self) -> None:
        """A line that comes again is looked up again in the next taking-in, not in the next batch."""
        path = name_of(Entity.RELEASE, MBID, "front")
        self.log.link(path, layout.link_text(path, IMAGE))
        count = 3 * BATCH_BYTES // (len(path) + 2)
        reader = self.log.reader()
        looked: list[str] = []
        readlink = os.readlink

        def look(name: str) -> str:
            looked.append(name)
            return readlink(name)

        self.patch(os, "readlink", look)
        self.log.append(f"/{path}\n".encode() * count)
        self.assertEqual(uses(self.log.take_in(reader)), {REF.at(250): count})
        self.assertEqual(len(looked), 1)
        os.unlink(self.log.root / path)
        other = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=9)
        self.log.link(
            path, layout.link_text(path, layout.image_path(other.at(250), MediaType.JPEG))
        )
        self.log.append(f"/{path}\n".encode())
        self.assertEqual(uses(self.log.take_in(reader)), {other.at(250): 1})

    def test_known_bounded(self) -> None:
        """However many different lines there are, what is remembered of them is bounded."""
        self.patch(hit_log, "MOST_KNOWN", 3)
        self.patch(hit_log, "BATCH_BYTES", 2 * len(LINE))
        lines = [
            f"/{layout.image_path(attrs.evolve(REF, image_id=n).at(250), MediaType.JPEG)}\n".encode()
            for n in range(1, 9)
        ]
        self.log.append(b"".join(lines * 5))
        reader = self.log.reader()
        self.assertTrue(reader.begin())
        hits = 0
        while (batch := reader.read()) is not None:
            hits += batch.hits
            reader.done(batch)
        reader.end()
        self.assertEqual(hits, 40)

    def test_killed_before_the_position(self) -> None:
        """A process that dies after telling a batch leads to this one being told again, no other."""
        count = 3 * BATCH_BYTES // len(LINE)
        self.log.append(LINE * count)
        victim = self.log.reader()
        self.assertTrue(victim.begin())
        first = victim.read()
        assert first is not None
        victim.done(first)
        told_twice = victim.read()
        assert told_twice is not None
        victim.end()
        self.assertLessEqual(told_twice.hits * len(LINE), BATCH_BYTES)
        # As if by the next leader: what was written down is the end of the first batch.
        again = self.log.take_in(self.log.reader())
        self.assertEqual(again[0], told_twice)
        self.assertEqual(sum(b.hits for b in again), count - first.hits)

    def test_second_reader(self) -> None:
        """While one reads, others keep out: also of cutting off what they would have read."""
        self.log.append(LINE)
        first, second = self.log.reader(), self.log.reader()
        self.assertTrue(first.begin())
        self.assertFalse(second.begin())
        second.end()
        self.assertFalse(second.begin())
        second.end()
        first.end()
        self.assertEqual(self.log.hits(second), 1)

    def test_stopped_reader(self) -> None:
        """One that was stopped between two takings-in goes on from where its successor ended."""
        old, new = self.log.reader(), self.log.reader()
        self.log.append(LINE * 2)
        self.assertEqual(self.log.hits(old), 2)
        self.log.append(LINE * 5)
        self.assertEqual(self.log.hits(new), 5)
        self.log.append(LINE)
        self.assertEqual(self.log.hits(old), 1)


class CutTests(HitLogCase):
    """What happens to the file beside the reading."""

    def test_not_while_it_grows(self) -> None:
        """What comes in after the last look is neither cut off nor lost."""
        self.log.append(LINE * (2 * CUT_BYTES // len(LINE)))
        reader = self.log.reader()
        self.assertTrue(reader.begin())
        while (batch := reader.read()) is not None and batch.full:
            reader.done(batch)
        assert batch is not None
        self.log.append(OTHER_LINE)
        reader.done(batch)
        reader.end()
        self.assertGreater(self.log.path.stat().st_size, CUT_BYTES)
        self.assertEqual(uses(self.log.take_in(reader)), {OTHER.at(500): 1})
        self.assertEqual(self.log.path.stat().st_size, 0)

    def test_small_stays(self) -> None:
        """A small log is left as it is."""
        self.log.append(LINE)
        self.log.hits()
        self.assertEqual(self.log.path.read_bytes(), LINE)

    def test_cut_by_hand(self) -> None:
        """A log cut off by somebody is read from its start, also once it is longer than it was."""
        for again in (2, 9):
            self.log.append(LINE * 5)
            self.log.hits()
            os.truncate(self.log.path, 0)
            self.log.append(OTHER_LINE * again)
            self.assertEqual(self.log.hits(), again)

    def test_killed_after_the_cut(self) -> None:
        """Killed before the cut was written down, the next one notices it by what stands there."""
        for again in (10, 30_000):
            count = 2 * CUT_BYTES // len(LINE)
            self.log.append(LINE * count)
            reader = self.log.reader()

            def killed(fresh: str, name: str, replace: Any = os.replace) -> None:
                if Path(fresh).read_text().split()[1] == "0":
                    raise KeyboardInterrupt
                replace(fresh, name)

            with patch.object(os, "replace", killed):
                self.assertRaises(KeyboardInterrupt, self.log.take_in, reader)
            self.assertEqual(self.log.path.stat().st_size, 0)
            self.log.append(OTHER_LINE * again)
            self.assertEqual(self.log.hits(), again)
            os.truncate(self.log.path, 0)

    def test_replaced(self) -> None:
        """A new file under the name is read from its start; the old one is left alone."""
        self.log.append(LINE * 5)
        self.log.hits()
        archive = self.log.root / "hits.log.1"
        os.rename(self.log.path, archive)
        self.assertEqual(self.log.hits(), 0)
        self.log.append(LINE * 9)
        self.assertEqual(self.log.hits(), 9)
        self.assertEqual(archive.read_bytes(), LINE * 5)

    def test_moved_away_meanwhile(self) -> None:
        """A log that is moved away while it is read is not cut off."""
        count = 2 * CUT_BYTES // len(LINE)
        self.log.append(LINE * count)
        reader = self.log.reader()
        self.assertTrue(reader.begin())
        archive = self.log.root / "hits.log.1"
        os.rename(self.log.path, archive)
        self.log.append(OTHER_LINE)
        while (batch := reader.read()) is not None:
            reader.done(batch)
        reader.end()
        self.assertEqual(archive.stat().st_size, count * len(LINE))
        self.assertEqual(self.log.hits(), 1)

    def test_position_damaged(self) -> None:
        """Without a position that can be read, it begins at the start."""
        for text in (b"", b"12", b"1 -5 0\n", b"x y z\n", b"\0" * 40):
            self.log.append(LINE)
            self.log.position.write_bytes(text)
            self.assertEqual(self.log.hits(), self.log.path.stat().st_size // len(LINE))

    def test_symlinks(self) -> None:
        """A symlink in the place of the log or of what lies beside it leads to no other file."""
        text = LINE * (CUT_BYTES // len(LINE) + 1)
        for name in ("", ".position", ".position.new"):
            with self.subTest(name=name):
                log = Log(folder(self))
                other = log.root / "other"
                other.write_bytes(text)
                if name:
                    log.append(text)
                os.symlink(other, f"{log.path}{name}")
                self.assertRaises(OSError, log.take_in, log.reader())
                self.assertEqual(other.read_bytes(), text)

    def test_no_file(self) -> None:
        """What is not a file can't be a log: an error that names it, and no waiting for a pipe."""
        os.mkfifo(self.log.path)
        reader = self.log.reader()
        with self.assertRaisesRegex(OSError, "hits.log"):
            reader.begin()
        reader.end()
        self.assertRaises(OSError, reader.read)


class AnyOrderTests(HitLogCase):
    """Any interleaving."""

    @examples(120)
    @given(
        st.lists(
            st.one_of(
                st.binary(min_size=1, max_size=30),
                st.sampled_from((LINE, LINE[:30], LINE[30:], OTHER_LINE * 3, b"\n", LINE * 90)),
                st.sampled_from((0, 1, 2)),
            ),
            max_size=30,
        ),
        st.sampled_from((64, 200, 4096)),
        st.sampled_from((1, 500, 10_000)),
    )
    def test_counted_once(self, story: list[bytes | int], batch: int, cut: int) -> None:
        """
        Whatever is appended between whichever takings-in by whom: hits are the lines that are paths.

        Batches are as small as a line here, so that each path stays whole in one.
        """
        self.patch(hit_log, "BATCH_BYTES", max(batch, 2 * len(LINE)))
        self.patch(hit_log, "CUT_BYTES", cut)
        log = Log(folder(self))
        readers = [log.reader() for _ in range(3)]
        written, hits = b"", 0
        for step in [*story, 0]:
            if isinstance(step, bytes):
                log.append(step)
                written += step
            else:
                hits += log.hits(readers[step])
                lines = written.split(b"\n")[:-1]
                expected = sum(line + b"\n" in (LINE, OTHER_LINE) for line in lines)
                self.assertEqual(hits, expected)
