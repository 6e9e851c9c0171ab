"""
The archive's ways: hop 1 says where a name points, archive.org which storage node has the file.

What is known is not asked again: a known target saves hop 1, a known node saves hop 2. Where the
items lie follows from the settings, never from an answer: hop 1 names an item and a file. Facts are
from https://musicbrainz.org/doc/Cover_Art_Archive/API and metabrainz/artwork-redirect.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import urljoin

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from coverart.archive.archive_client import ArchiveClient, Trip
from coverart.archive.listings import LARGEST_BYTES
from coverart.archive.transfer import BytesSink, Sink
from coverart.archive.url_policy import ArchiveFile, Hop, Rules, archive_file, file_name
from coverart.errors import BadUpstream, CoverError, NotInArchive, PassingTrouble, StoreFailed
from coverart.model import AliasKey, Entity, ImageRef, ListingKey, Target

MOST_REDIRECTS = 3
"""Four hops: the archive's three and one to spare."""
MOST_NODES = 10_000
"""Storage nodes remembered, and folders of a mirror; the one used longest ago is forgotten first."""
RETRY_PAUSE_S = 0.25

T = TypeVar("T")
K = TypeVar("K")


class Upstream:
    """The archive, as one process sees it."""

    log = Logger()

    def __init__(
        self,
        client: ArchiveClient,
        *,
        rules: Rules,
        bases: Mapping[Entity, str],
        downloads: Mapping[Entity, str],
        clock: IReactorTime,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """
        :param rules: must trust the bases' own hosts.
        :param bases: hop 1 of each entity, without a trailing slash.
        :param downloads: the folder that holds the items of releases or events, where the
            settings leave one. For any other, hop 1 chooses: `/download/` on a host that `rules`
            name in full, or below hop 1's own base.
        """
        self.client = client
        self._rules = rules
        self._bases = dict(bases)
        self._clock = clock
        self._jitter = jitter
        self._downloads = downloads
        self._folders: OrderedDict[tuple[Entity, str], str] = OrderedDict()
        self._nodes: OrderedDict[str, str] = OrderedDict()

    async def resolve(self, key: AliasKey, trip: Trip) -> Target:
        """
        Ask hop 1 where a name points: one small request.

        Asked without a size: all sizes are of one image, and only this tells the original's
        extension.

        :raises NotInArchive: no such art.
        :raises CoverError: the archive can't be asked, or makes no sense.
        """
        file = await self._hop_1(key.entity, f"{key.mbid}/{key.name}", trip)
        if file.target is None:
            raise BadUpstream("hop 1 leads from an image to a listing")
        if key.name not in ("front", "back", file.target.ref.image_id):
            raise BadUpstream("hop 1 leads from one image id to another")
        return file.target

    def can_fetch(self, target: Target, size: int) -> bool:
        """Say whether image() can be called without resolve() before it."""
        known = self._folder(target.ref) is not None or target.ref.mbid in self._nodes
        return known and bool(size or target.extension)

    async def image(self, target: Target, size: int, sink: Sink, trip: Trip) -> None:
        """
        Fetch one size of an image into `sink`: one request if the node is known, else two.

        :raises NotInArchive: with `derived` set: the item has no such file (yet, or any more).
        :raises CoverError: it could not be had whole.
        :raises ValueError: can_fetch() says no.
        """
        name = file_name(target.ref, size, target.extension)
        if trip.hops == 0:
            self.client.metrics.target_known.inc()
        await self._file(self._folder(target.ref), target.ref.mbid, name, sink, trip)

    async def listing(self, key: ListingKey, trip: Trip) -> bytes:
        """
        Fetch the listing of an entity as the archive has it.

        :raises NotInArchive: no such entity, or no art at all.
        :raises CoverError: it could not be had whole.
        """
        file = await self._hop_1(key.entity, key.mbid, trip)
        if file.target is not None:
            raise BadUpstream("hop 1 leads from a listing to an image")
        sink = BytesSink(LARGEST_BYTES)
        await self._file(file.base, file.mbid, "index.json", sink, trip)
        return sink.body

    async def _hop_1(self, entity: Entity, rest: str, trip: Trip) -> ArchiveFile:
        asked = f"{entity.value}/{rest}"
        hop = self._rules.check(f"{self._bases[entity]}/{asked}")
        location = await self._again_once(lambda: self.client.get(hop, "1", trip, None))
        owner = Entity.EVENT if entity is Entity.EVENT else Entity.RELEASE
        leads_to = self._rules.follow(hop, location or None)
        file = archive_file(leads_to.url, owner)
        if owner in self._downloads:
            right = file.base == self._downloads[owner]
        else:
            below = f"{hop.url.removesuffix(asked)}download/"
            right = file.base in (below, urljoin(leads_to.url, "/download/"))
            right = right and self._rules.names(leads_to.host, leads_to.port)
        if not right:
            raise BadUpstream(f"hop 1 leads to a folder of {leads_to.host} that holds no items")
        if owner not in self._downloads:
            # Of that item alone, as with nodes: a mirror may have several hosts.
            _remember(self._folders, (owner, file.mbid), file.base)
        return file

    def _folder(self, ref: ImageRef) -> str | None:
        """The folder that holds the item of an image; None if only hop 1 can tell."""
        return self._downloads.get(ref.owner) or self._folders.get((ref.owner, ref.mbid))

    async def _file(self, base: str | None, mbid: str, name: str, sink: Sink, trip: Trip) -> None:
        node = self._nodes.get(mbid)
        if node is not None:
            try:
                await self._follow(self._rules.check(node + name), mbid, name, sink, trip, "node")
            except StoreFailed:
                # Our own trouble, which no other node mends.
                raise
            except CoverError as error:
                # The item may have moved to another node; archive.org knows.
                self._nodes.pop(mbid, None)
                if base is None:
                    raise
                self.log.info(
                    "{node} failed, archive.org is asked: {detail}", node=node, detail=error.detail
                )
            else:
                self.client.metrics.node_known.inc()
                return
        if base is None:
            raise ValueError(f"no way known to {name}")
        first = self._rules.check(f"{base}mbid-{mbid}/{name}")
        await self._again_once(lambda: self._follow(first, mbid, name, sink, trip, "2"))

    async def _follow(
        self, hop: Hop, mbid: str, name: str, sink: Sink, trip: Trip, label: str
    ) -> None:
        for _ in range(MOST_REDIRECTS):
            try:
                location = await self.client.get(hop, label, trip, sink)
            except NotInArchive as error:
                raise NotInArchive(error.detail, derived=True) from error
            if location is None:
                self._learn(hop, mbid, name)
                return
            hop, label = self._rules.follow(hop, location or None), "node"
        raise BadUpstream("the archive redirects without end")

    def _learn(self, hop: Hop, mbid: str, name: str) -> None:
        """
        Remember the folder of the node that had the file, for other files of its item.

        Of that item alone: whoever answers for one must not draw in what is asked of another.
        """
        if hop.url.endswith(f"/mbid-{mbid}/{name}") and "/items/" in hop.url:
            _remember(self._nodes, mbid, hop.url.removesuffix(name))

    async def _again_once(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Try a second time where the trouble may pass; a GET is safe to repeat."""
        try:
            return await attempt()
        except PassingTrouble as error:
            self.log.debug("once more after {detail}", detail=error.detail)
        await deferLater(self._clock, RETRY_PAUSE_S * (1 + self._jitter()))
        return await attempt()


def _remember(known: OrderedDict[K, str], key: K, url: str) -> None:
    known[key] = url
    known.move_to_end(key)
    if len(known) > MOST_NODES:
        known.popitem(last=False)
