"""
The archive as a source: hop 1 says where a name points, archive.org which storage node has the file.

What is known is not asked again: a known target saves hop 1, a known node saves hop 2. Where the
items lie follows from the settings, never from an answer: hop 1 names an item and a file. Facts are
from https://musicbrainz.org/doc/Cover_Art_Archive/API and metabrainz/artwork-redirect.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urljoin

import attrs
from twisted.logger import Logger

from coverart.archive.follow_redirects import Redirects
from coverart.archive.listings import LARGEST_BYTES
from coverart.archive.source import FetchDeadline, Sink
from coverart.archive.transfer import BytesSink
from coverart.archive.url_policy import ArchiveFile, Hop, archive_file, file_name
from coverart.errors import BadUpstream, CoverError, StoreFailed
from coverart.metrics import Metrics
from coverart.model import AliasKey, Entity, ImageRef, ListingKey, Target

MOST_NODES = 10_000
"""Storage nodes remembered, and folders of a mirror; the one used longest ago is forgotten first."""

K = TypeVar("K")


class Upstream:
    """The archive, as one process sees it; a Source."""

    log = Logger()

    def __init__(
        self,
        redirects: Redirects,
        *,
        bases: Mapping[Entity, str],
        downloads: Mapping[Entity, str],
        metrics: Metrics,
    ) -> None:
        """
        :param redirects: whose rules must trust the bases' own hosts.
        :param bases: hop 1 of each entity, without a trailing slash.
        :param downloads: the folder that holds the items of releases or events, where the
            settings leave one. For any other, hop 1 chooses: `/download/` on a host that the rules
            name in full, or below hop 1's own base.
        """
        self._redirects = redirects
        # As a checked URL is spelled, so that they can be compared.
        self._bases = {entity: redirects.rules.check(base) for entity, base in bases.items()}
        self._downloads = downloads
        self._metrics = metrics
        self._folders: OrderedDict[tuple[Entity, str], str] = OrderedDict()
        self._nodes: OrderedDict[str, str] = OrderedDict()

    async def resolve(self, key: AliasKey, deadline: FetchDeadline) -> Target:
        """
        Ask hop 1 where a name points: one small request.

        Asked without a size: all sizes are of one image, and only this tells the original's
        extension.
        """
        file = await self._hop_1(key.entity, f"{key.mbid}/{key.name}", deadline)
        if file.target is None:
            raise BadUpstream("hop 1 leads from an image to a listing")
        if key.name not in ("front", "back", file.target.ref.image_id):
            raise BadUpstream("hop 1 leads from one image id to another")
        return file.target

    def can_fetch(self, target: Target, size: int) -> bool:
        """Say whether image() can be called without resolve() before it."""
        known = self._folder(target.ref) is not None or target.ref.mbid in self._nodes
        return known and bool(size or target.extension)

    async def image(self, target: Target, size: int, sink: Sink, deadline: FetchDeadline) -> None:
        """Fetch one size of an image into `sink`: one request if the node is known, else two or three."""
        ref = target.ref
        name = file_name(ref, size, target.extension)
        folder = self._folder(ref)
        if folder is None and ref.mbid not in self._nodes:
            # The node was known when can_fetch() was asked, and has failed another fetch since.
            folder = (await self._hop_1(ref.owner, f"{ref.mbid}/{ref.image_id}", deadline)).base
        if deadline.hops == 0:
            self._metrics.target_known.inc()
        await self._file(folder, ref.mbid, name, sink, deadline)

    async def listing(self, key: ListingKey, deadline: FetchDeadline) -> bytes:
        """Fetch the listing of an entity as the archive has it."""
        file = await self._hop_1(key.entity, key.mbid, deadline)
        if file.target is not None:
            raise BadUpstream("hop 1 leads from a listing to an image")
        sink = BytesSink(LARGEST_BYTES)
        await self._file(file.base, file.mbid, "index.json", sink, deadline)
        return sink.body

    async def _hop_1(self, entity: Entity, rest: str, deadline: FetchDeadline) -> ArchiveFile:
        base = self._bases[entity]
        below = f"/{entity.value}/{rest}"
        asked = attrs.evolve(base, url=base.url + below, path=base.path + below)
        leads_to = await self._redirects.first(asked, deadline)
        owner = Entity.EVENT if entity is Entity.EVENT else Entity.RELEASE
        file = archive_file(leads_to, owner)
        if owner in self._downloads:
            right = file.base == self._downloads[owner]
        else:
            right = file.base in (f"{base.url}/download/", urljoin(leads_to.url, "/download/"))
            right = right and self._redirects.rules.names(leads_to.host, leads_to.port)
            if right:
                # Of that item alone, as with nodes: a mirror may have several hosts.
                _remember(self._folders, (owner, file.mbid), file.base)
        if not right:
            raise BadUpstream(f"hop 1 leads to a folder of {leads_to.host} that holds no items")
        return file

    def _folder(self, ref: ImageRef) -> str | None:
        """The folder that holds the item of an image; None if only hop 1 can tell."""
        return self._downloads.get(ref.owner) or self._folders.get((ref.owner, ref.mbid))

    async def _file(
        self, folder: str | None, mbid: str, name: str, sink: Sink, deadline: FetchDeadline
    ) -> None:
        node = self._nodes.get(mbid)
        if node is not None:
            try:
                hop = await self._redirects.from_node(node + name, sink, deadline)
            except StoreFailed:
                # Our own trouble, which no other node mends.
                raise
            except CoverError as error:
                # The item may have moved to another node; archive.org knows.
                self._nodes.pop(mbid, None)
                if folder is None:
                    raise
                self.log.info(
                    "{node} failed, archive.org is asked for {name}: {why}",
                    node=node,
                    name=name,
                    why=error.detail,
                )
            else:
                self._metrics.node_known.inc()
                self._learn(hop, mbid, name)
                return
        hop = await self._redirects.to_file(f"{folder}mbid-{mbid}/{name}", sink, deadline)
        self._learn(hop, mbid, name)

    def _learn(self, hop: Hop, mbid: str, name: str) -> None:
        """
        Remember the folder of the node that had the file, for other files of its item.

        Of that item alone: whoever answers for one must not draw in what is asked of another.
        """
        if hop.url.endswith(f"/mbid-{mbid}/{name}") and "/items/" in hop.url:
            _remember(self._nodes, mbid, hop.url.removesuffix(name))


def _remember(known: OrderedDict[K, str], key: K, url: str) -> None:
    known[key] = url
    known.move_to_end(key)
    if len(known) > MOST_NODES:
        known.popitem(last=False)
