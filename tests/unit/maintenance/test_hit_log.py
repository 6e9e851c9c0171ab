"""The log of nginx's direct hits: every whole line counted once, whatever happens to the file."""

import errno
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from coverart.coordination.leader import Alone
from coverart.index.eviction_order import Eviction
from coverart.index.memory import MemoryIndex
from coverart.maintenance import hit_log
from coverart.maintenance.hit_log import BATCH_BYTES, HitLog
from coverart.metrics import Metrics
from coverart.model import (
    AliasKey,
    Entity,
    FileEntry,
    FileKey,
    ImageRef,
    ImageRequest,
    ListingKey,
    MediaType,
)
from coverart.store import layout
from tests.support.doubles import HeldBack, at_once, folder
from tests.support.hit_lines import IMAGE, LINE, OTHER, OTHER_LINE, REF, Log
from tests.support.strategies import MBID, OTHER_MBID, examples


def name_of(entity: Entity, mbid: str, name: str) -> str:
    """The path of an alias's symlink for 250 pixels."""
    request = ImageRequest(
        alias=AliasKey(entity=entity, mbid=mbid, name="front" if name == "front" else int(name)),
        size=250,
    )
    return layout.alias_path(request, MediaType.JPEG)


class Index(MemoryIndex):
    """One that says what it was told of uses."""

    def __init__(self, eviction: Eviction) -> None:
        super().__init__(eviction=eviction)
        self.uses: dict[FileKey, int] = {}

    async def use(self, uses: Sequence[tuple[FileKey, int]]) -> None:
        for key, times in uses:
            self.uses[key] = self.uses.get(key, 0) + times
        await super().use(uses)


class Leading(Alone):
    """A leader, or not."""

    token: str | None = "one"  # type: ignore[assignment]  # noqa: S105


class HitLogCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.log = Log(folder(self))
        self.index = Index("least-useful")
        self.leadership = Leading()
        self.metrics = Metrics()
        self.clock = Clock()
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def reader(self, in_thread: Callable[..., Deferred[Any]] = at_once) -> HitLog:
        return HitLog(
            self.log.path,
            self.log.root,
            index=self.index,
            in_thread=in_thread,
            leadership=self.leadership,
            clock=self.clock,
            metrics=self.metrics,
        )

    def finish(self, work: Coroutine[Deferred[Any], Any, object]) -> None:
        """Let it come to its end, in as many turns as it takes."""
        d = Deferred.fromCoroutine(work)
        for _ in range(200):
            self.clock.advance(0)
        self.successResultOf(d)

    def hits(self, reader: HitLog | None = None) -> int:
        """How many hits are new."""
        before = self.counted()
        self.finish((reader or self.reader()).count())
        return self.counted() - before

    def counted(self) -> int:
        return int(self.metrics.value("coverart_direct_hits_total") or 0)

    def warnings(self) -> list[str]:
        return [formatEvent(event) for event in self.events if event["log_level"] is LogLevel.warn]


class LineTests(HitLogCase):
    """What the lines say."""

    def said(self, *lines: bytes) -> int:
        self.log.append(b"".join(lines))
        return self.hits()

    def test_files(self) -> None:
        """A line for each hit, of images and listings; none is a hit of the app's own."""
        listing = ListingKey(entity=Entity.EVENT, mbid=MBID)
        line = f"/{layout.listing_path(listing)}\n".encode()
        self.assertEqual(self.said(LINE, line, OTHER_LINE, LINE, LINE), 5)
        self.assertEqual(self.index.uses, {REF.at(250): 3, OTHER.at(500): 1, listing: 1})
        self.assertEqual(self.metrics.value("coverart_answers_total", outcome="hits"), 0)
        self.assertEqual(self.warnings(), [])

    def test_aliases(self) -> None:
        """A use of a name is one of the image that its symlink leads to, under its own name too."""
        group = name_of(Entity.RELEASE_GROUP, OTHER_MBID, "front")
        merged = name_of(Entity.RELEASE, OTHER_MBID, "7")
        for path in (group, merged):
            self.log.link(path, layout.link_text(path, IMAGE))
        hits = self.said(f"/{group}\n".encode() * 2, f"/{merged}\n".encode(), LINE)
        self.assertEqual((hits, self.index.uses), (4, {REF.at(250): 4}))

    def test_dangling(self) -> None:
        """A symlink whose image was evicted since still says which it was."""
        path = name_of(Entity.RELEASE, MBID, "front")
        self.log.link(path, layout.link_text(path, IMAGE))
        self.said(f"/{path}\n".encode())
        self.assertEqual(self.index.uses, {REF.at(250): 1})

    def test_retired(self) -> None:
        """So does one that was retired since."""
        path = name_of(Entity.RELEASE, MBID, "front")
        self.log.link(path + layout.RETIRED, layout.link_text(path, IMAGE))
        self.said(f"/{path}\n".encode())
        self.assertEqual(self.index.uses, {REF.at(250): 1})

    def test_gone_or_foreign(self) -> None:
        """A hit is one though nobody can tell any more of what, or the symlink is not ours."""
        path = name_of(Entity.RELEASE, MBID, "front")
        strange = name_of(Entity.RELEASE, OTHER_MBID, "front")
        self.log.link(strange, "/etc/passwd")
        self.assertEqual(self.said(f"/{path}\n/{strange}\n".encode()), 2)
        self.assertEqual(self.index.uses, {})

    def test_nobody_asks_of_what(self) -> None:
        """Evicting by age needs no look at any symlink."""
        self.index = Index("oldest")
        self.assertEqual((self.said(LINE, LINE), self.index.uses), (2, {}))

    def test_rubbish(self) -> None:
        """What is no path of the cache is told of in one line, and nothing is looked up for it."""
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
        self.assertEqual(self.said(*wrong, LINE, b"\n"), 1)
        (said,) = self.warnings()
        self.assertIn(f"{len(wrong) + 1} lines of {self.log.path}", said)

    def test_uses(self) -> None:
        """A file that nginx sends often is not the first to go, though it is the oldest."""
        for key, at in ((REF.at(250), 1.0), (OTHER.at(500), 2.0)):
            entry = FileEntry(size_bytes=9000, stored_at=at, media=MediaType.JPEG)
            self.finish(self.index.put_file(key, entry))
        self.said(LINE * 5, OTHER_LINE)
        order: list[Any] = []

        async def look() -> None:
            order.extend(key for key, _ in await self.index.first_to_evict(2))

        self.finish(look())
        self.assertEqual(order, [OTHER.at(500), REF.at(250)])


class ReadTests(HitLogCase):
    """How the log is gone through."""

    def test_missing(self) -> None:
        """A log that nginx has not made yet is no trouble, and leaves nothing behind."""
        self.assertEqual(self.hits(), 0)
        self.assertEqual((os.listdir(self.log.root), self.warnings()), ([], []))

    def test_emptied(self) -> None:
        """What was counted is not there any more, for this process, another one or a later one."""
        reader = self.reader()
        self.log.append(LINE * 3)
        self.assertEqual(self.hits(reader), 3)
        self.assertEqual(self.log.path.stat().st_size, 0)
        self.assertEqual(self.hits(reader), 0)
        self.log.append(OTHER_LINE)
        self.assertEqual(self.hits(), 1)
        self.assertEqual(self.hits(reader), 0)
        self.assertEqual(os.listdir(self.log.root), ["hits.log"])

    def test_half_a_line(self) -> None:
        """A line counts when its end is there."""
        reader = self.reader()
        self.log.append(LINE + LINE[:40])
        self.assertEqual(self.hits(reader), 1)
        self.log.append(LINE[40:-1])
        self.assertEqual(self.hits(reader), 0)
        self.log.append(LINE[-1:])
        self.assertEqual(self.hits(reader), 1)
        self.assertEqual(self.warnings(), [])

    def test_long(self) -> None:
        """However long it is, all of it is counted, and each file is told once with all its uses."""
        count = 5 * BATCH_BYTES // len(LINE)
        self.log.append(LINE * count + OTHER_LINE)
        self.assertEqual(self.hits(), count + 1)
        self.assertEqual(self.index.uses, {REF.at(250): count, OTHER.at(500): 1})

    def test_bounded(self) -> None:
        """However many different lines and files there are, what is remembered of them is bounded."""
        self.patch(hit_log, "MOST_KNOWN", 3)
        self.patch(hit_log, "MOST_USES_KEPT", 3)
        self.patch(hit_log, "BATCH_BYTES", 2 * len(LINE))
        lines = [
            f"/{layout.image_path(attrs.evolve(REF, image_id=n).at(250), MediaType.JPEG)}\n".encode()
            for n in range(1, 9)
        ]
        self.log.append(b"".join(lines * 5))
        self.assertEqual(self.hits(), 40)
        self.assertEqual(list(self.index.uses.values()), [5] * 3)

    def test_endless_line(self) -> None:
        """A line without an end keeps nothing back, and is one line once it ends."""
        reader = self.reader()
        self.log.append(b"x" * (3 * BATCH_BYTES + 17))
        self.assertEqual(self.hits(reader), 0)
        self.log.append(b"/y\n" + LINE * 2)
        self.assertEqual(self.hits(reader), 2)
        (said,) = self.warnings()
        self.assertIn("1 lines", said)

    def test_remembers_lines(self) -> None:
        """A line that comes again is looked up again by the next reading, not in the next batch."""
        path = name_of(Entity.RELEASE, MBID, "front")
        self.log.link(path, layout.link_text(path, IMAGE))
        count = 3 * BATCH_BYTES // (len(path) + 2)
        reader = self.reader()
        looked: list[str] = []
        readlink = os.readlink

        def look(name: str) -> str:
            looked.append(name)
            return readlink(name)

        self.patch(os, "readlink", look)
        self.log.append(f"/{path}\n".encode() * count)
        self.assertEqual(self.hits(reader), count)
        self.assertEqual(len(looked), 1)
        os.unlink(self.log.root / path)
        other = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=9)
        self.log.link(
            path, layout.link_text(path, layout.image_path(other.at(250), MediaType.JPEG))
        )
        self.log.append(f"/{path}\n".encode())
        self.hits(reader)
        self.assertEqual(self.index.uses, {REF.at(250): count, other.at(250): 1})

    def test_not_the_leader(self) -> None:
        """Who does not lead does not touch it."""
        self.leadership.token = None
        self.log.append(LINE)
        self.assertEqual(self.hits(), 0)
        self.assertEqual(self.log.path.read_bytes(), LINE)

    def test_second_reader(self) -> None:
        """While one reads, another keeps out: also of cutting off what the first would read."""
        self.log.append(LINE)
        first, second = self.reader(), self.reader()
        inside: list[int] = []
        readlink = os.readlink

        def meanwhile(name: str) -> str:
            inside.append(self.hits(second))
            return readlink(name)

        self.patch(os, "readlink", meanwhile)
        self.assertEqual((self.hits(first), inside), (1, [0, 0]))

    def test_stopping(self) -> None:
        """A process that ends does not go through a gigabyte first: it leaves it to the next one."""
        self.log.append(LINE)
        threads = HeldBack()
        reader = self.reader(threads)
        d = Deferred.fromCoroutine(reader.count())
        reader.stop()
        threads.let_all_go()
        self.successResultOf(d)
        self.assertEqual((self.counted(), self.hits()), (0, 1))

    def test_killed(self) -> None:
        """A process that ends before the log is cut off has counted nothing of it."""
        self.log.append(LINE * 3)

        def killed(name: str) -> str:
            raise KeyboardInterrupt

        self.patch(os, "readlink", killed)
        self.failureResultOf(Deferred.fromCoroutine(self.reader().count()), KeyboardInterrupt)
        self.patch(self.index, "eviction", "oldest")
        self.assertEqual(self.counted(), 0)
        self.assertEqual(self.hits(), 3)


class FileTests(HitLogCase):
    """What happens to the file beside the reading."""

    def test_cut_by_hand(self) -> None:
        """A log cut off by somebody is read from its start."""
        self.log.append(LINE * 5)
        os.truncate(self.log.path, 0)
        self.log.append(OTHER_LINE * 2)
        self.assertEqual(self.hits(), 2)

    def test_replaced(self) -> None:
        """A new file under the name is read; the old one is left alone."""
        reader = self.reader()
        self.hits(reader)
        self.log.append(LINE * 5)
        archive = self.log.root / "hits.log.1"
        os.rename(self.log.path, archive)
        self.assertEqual(self.hits(reader), 0)
        self.log.append(LINE * 9)
        self.assertEqual(self.hits(reader), 9)
        self.assertEqual(archive.read_bytes(), LINE * 5)

    def test_symlink(self) -> None:
        """A symlink in the place of the log leads to no other file."""
        other = self.log.root / "other"
        other.write_bytes(LINE)
        os.symlink(other, self.log.path)
        self.assertEqual(self.hits(), 0)
        self.assertEqual((other.read_bytes(), len(self.warnings())), (LINE, 1))

    def test_no_file(self) -> None:
        """What is not a file can't be a log: it is named, and nobody waits for a pipe."""
        os.mkfifo(self.log.path)
        self.assertEqual(self.hits(), 0)
        (said,) = self.warnings()
        self.assertIn("hits.log", said)

    def test_complains_once(self) -> None:
        """A log that can't be used is named once, with what to do; then it is well again."""
        reader = self.reader()
        os.mkdir(self.log.path)
        for _ in range(3):
            self.hits(reader)
        (said,) = self.warnings()
        self.assertIn(str(self.log.path), said)
        self.assertIn("must be able to", said)
        os.rmdir(self.log.path)
        self.log.append(LINE)
        self.assertEqual((self.hits(reader), len(self.warnings())), (1, 1))
        os.unlink(self.log.path)
        os.mkdir(self.log.path)
        self.hits(reader)
        self.assertEqual(len(self.warnings()), 2)

    def test_not_writable(self) -> None:
        """The same for a log that can be read only: it could never be cut off."""
        self.log.append(LINE)
        opened = os.open

        def as_somebody_else(path: str, flags: int, mode: int = 0o777) -> int:
            # What any user but root gets for a file of mode 0444.
            if path == os.fspath(self.log.path) and flags & (os.O_WRONLY | os.O_RDWR):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return opened(path, flags, mode)

        self.patch(os, "open", as_somebody_else)
        self.hits()
        self.assertIn("Permission denied", self.warnings()[0])


class AnyOrderTests(HitLogCase):
    """Any interleaving."""

    @examples(120)
    @given(
        st.lists(
            st.one_of(
                st.binary(min_size=1, max_size=30),
                st.sampled_from((LINE, LINE[:30], LINE[30:], OTHER_LINE * 3, b"\n", LINE * 90)),
                st.none(),
            ),
            max_size=30,
        ),
        st.sampled_from((64, 200, 4096)),
    )
    def test_counted_once(self, story: list[bytes | None], batch: int) -> None:
        """Whatever is appended between whichever readings: hits are the lines that are paths."""
        self.patch(hit_log, "BATCH_BYTES", batch)
        self.log = Log(folder(self))
        reader = self.reader()
        written, hits = b"", 0
        for step in [*story, None]:
            if step is not None:
                self.log.append(step)
                written += step
            else:
                hits += self.hits(reader)
                lines = written.split(b"\n")[:-1]
                expected = sum(line + b"\n" in (LINE, OTHER_LINE) for line in lines)
                self.assertEqual(hits, expected)
