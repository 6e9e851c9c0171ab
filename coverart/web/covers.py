"""
The archive's routes: an answer of the cache becomes status, headers and a body.

No caching rules here. The same bytes and headers leave whether nginx sends the file (accel.py) or
this process does (delivery.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import attrs
from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from coverart.archive.leads_here import LeadsHere
from coverart.archive.paths import spell
from coverart.cache.answers import Absent, Answer, Flowing, Held, Passing, Pointed, Status
from coverart.cache.fair_shares import Share
from coverart.cache.lookup import CoverCache
from coverart.cache.writer import InThread
from coverart.content import ENOUGH, check_type
from coverart.errors import BadUpstream, NotInArchive, Refused, StoreFailed
from coverart.model import ORIGINAL, Found, ImageRequest, ListingKey, Thing
from coverart.store.atomic_files import FAULTS_OF_THE_FILE
from coverart.web.accel import send_by_nginx
from coverart.web.access_log import LoggedRequest
from coverart.web.conditional import Validators
from coverart.web.delivery import Arriving, Body, OpenFile, Source
from coverart.web.headers import describe, explain, sized, span_to_send, typed
from coverart.web.public_listings import PublicListing, PublicListings
from coverart.web.public_url import REDIRECT, SERVE, PublicUrl


@attrs.frozen(kw_only=True)
class DeliveryMode:
    """How answers are sent: by nginx or by this process, with which URLs, or as redirects."""

    public_url: PublicUrl
    """Where listings and redirects lead."""

    accel: str | None = None
    """Internal prefix for X-Accel-Redirect; None: this process sends files itself."""
    redirect_names: bool = False
    """COVER_ART_IMAGE_MODE=redirect: a front or back is answered with the URL of its image."""

    def redirects(self, asked: ImageRequest, prefix: str) -> bool:
        """Whether a request is answered with the URL of its image. :param prefix: SERVE, REDIRECT or none."""
        if prefix:
            return prefix == REDIRECT
        return self.redirect_names and asked.alias.ages


class Covers(Resource):
    """Listings and images, in all the archive's spellings. Paths were parsed before (site.py)."""

    isLeaf = True
    app = Klein()
    log = Logger()

    def __init__(
        self,
        cache: CoverCache,
        mode: DeliveryMode,
        in_thread: InThread,
        leads_here: LeadsHere,
        hit: Callable[[], None] = lambda: None,
        share: Callable[[Request], Share | None] = lambda _: None,
    ) -> None:
        """
        :param hit: told of each hit.
        :param share: what the client of a request may fetch.
        """
        self._leads_here = leads_here
        super().__init__()
        self._cache = cache
        self._mode = mode
        self._listings = PublicListings(cache.store, in_thread)
        self._hit = hit
        self._share = share
        self._routes: IResource = self.app.resource()

    def render(self, request: LoggedRequest) -> bytes | int:
        """
        What is held, or known to be absent, is answered at once, all else by its route.

        Most requests to a cache are hits. Finding a route and chaining Deferreds cost as much as
        all the rest of such an answer: without this, `python -m bench --rows hit-accel,hit-redis`
        misses its goals.

        :raises CoverError: as explain() takes it.
        """
        thing = request.thing
        if isinstance(thing, ListingKey):
            if (public := self._mode.public_url(request)) is not None:
                request.base = public + request.prefix
        elif self._mode.redirects(thing, request.prefix):
            # It leads to what is not redirected again.
            public = self._mode.public_url(request) or ""
            request.base = public + (SERVE if request.prefix else "")
            return self._by_route(request)
        hit = self._cache.hit(thing)
        if not isinstance(hit, Deferred):
            return self._hit_or_route(hit, request)
        request.notifyFinish().addErrback(lambda _: hit.cancel())
        rendered: Deferred[bytes | int] = hit.addCallback(self._hit_or_route, request)
        rendered.addErrback(_explain_unless_left, request).addCallback(_finish, request)
        return NOT_DONE_YET

    def _hit_or_route(self, found: Held | Absent | Found, request: LoggedRequest) -> bytes | int:
        if isinstance(found, Found):
            request.found = found
            return self._by_route(request)
        describe(request, found, self._cache.lifetimes)
        if isinstance(found, Absent):
            raise NotInArchive
        try:
            if found.entry.media is not None or request.base is None:
                body = self._file(request, found)
            elif (kept := self._listings.kept(found.path)) is not None:
                body = _listing(request, kept, request.base)
            else:
                return self._by_route(request)
        except (OSError, BadUpstream):
            # Gone or spoilt between the look and the opening, which art() mends.
            return self._by_route(request)
        if found.status is Status.HIT:
            self._hit()
        return body if isinstance(body, bytes) else body.render(request)

    def _by_route(self, request: LoggedRequest) -> bytes | int:
        # Routes match the canonical path, whatever was sent.
        request.postpath = request.key[1:].encode().split(b"/")
        rendered: bytes | int = self._routes.render(request)
        return rendered

    @app.route("/release/<path:_>")
    @app.route("/release-group/<path:_>")
    @app.route("/event/<path:_>")
    async def art(self, request: LoggedRequest, _: str) -> Any:
        """
        Answer with the image or listing that the path names.

        :raises Refused: it is our own request for it, which would wait for itself.
        """
        loop = request.getHeader(b"cdn-loop")
        if loop is not None and self._leads_here.came_back(loop.decode("latin-1")):
            raise Refused(
                508,
                "the archive's name leads to this proxy itself",
                proxy_error="proxy_loop_detected",
            )
        thing: Thing = request.thing

        def share() -> Share | None:
            return self._share(request)

        if isinstance(thing, ImageRequest) and request.base is not None:
            return self._pointed(request, thing, await self._cache.point(thing.alias, share))
        answer = await self._cache.get(thing, request.found, share)
        if answer.status is Status.HIT:
            self._hit()
        try:
            return await self._body(request, answer)
        except (OSError, BadUpstream) as error:
            if not isinstance(answer, Held):
                raise
            await self._mend(request, answer, error)
        return await self._body(request, await self._cache.get(thing, None, share))

    async def _mend(self, request: LoggedRequest, held: Held, error: OSError | BadUpstream) -> None:
        """
        See to it that a second look at the cache does not find a file that can't be served.

        :raises StoreFailed: that is no fault of the file's.
        """
        if isinstance(error, FileNotFoundError):
            # Evicted between the look and the opening: the second look finds it missing.
            return
        if isinstance(error, OSError) and error.errno not in FAULTS_OF_THE_FILE:
            self.log.warn(
                "can't serve {path}: {reason}; answering 503 (request {id})",
                path=held.path,
                id=request.identify(),
                reason=error.strerror,
            )
            raise StoreFailed(f"{held.path}: {error.strerror}") from error
        await self._cache.spoilt(held)

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """What could not be done, in the words of the contract."""
        return explain(request, failure)

    async def _body(self, request: LoggedRequest, answer: Answer) -> Any:
        describe(request, answer, self._cache.lifetimes)
        if isinstance(answer, Held):
            if answer.entry.media is None and request.base is not None:
                return _listing(request, await self._listings.get(answer.path), request.base)
            return self._file(request, answer)
        if isinstance(answer, Flowing):
            return self._arriving(request, answer)
        if isinstance(answer, Passing):
            return await self._passing(request, answer)
        raise NotInArchive

    def _file(self, request: LoggedRequest, held: Held) -> bytes | Body:
        """
        A file as it lies on the disk.

        :raises OSError: it can't be opened or read.
        :raises BadUpstream: it is not what it was stored as.
        """
        media = held.entry.media
        if send_by_nginx(request, self._mode.accel, held.path):
            typed(request, media)
            return sized(request, b"")
        fd = self._cache.store.open(held.path)
        try:
            if media is not None:
                # The index knows files by their names, which is all a rebuild reads of them.
                check_type(os.pread(fd, ENOUGH, 0), media)
            status = os.fstat(fd)
            validators = Validators(size_bytes=status.st_size, modified=int(status.st_mtime))
            span = span_to_send(request, media, validators)
        except BaseException:
            os.close(fd)
            raise
        return Body(OpenFile(fd), span)

    async def _passing(self, request: LoggedRequest, passing: Passing) -> Body:
        """A listing that lies nowhere."""
        if request.base is not None:
            listing = await self._listings.unstored(passing.listing)
            return _listing(request, listing, request.base)
        body, modified = passing.listing.body, int(passing.listing.stored_at)
        validators = Validators(size_bytes=len(body), modified=modified)
        return Body(Source(body), span_to_send(request, None, validators))

    def _arriving(self, request: LoggedRequest, flowing: Flowing) -> Body:
        """An image that is being downloaded."""
        download = flowing.download
        if self._mode.accel is not None and not download.whole:
            # nginx would wait for a buffer full of it.
            request.setHeader(b"x-accel-buffering", b"no")
        validators = Validators(size_bytes=download.size_bytes, modified=int(download.stored_at))
        span = span_to_send(request, download.media, validators)
        return Body(Source() if span is None else Arriving(download, span.start), span)

    def _pointed(
        self, request: LoggedRequest, thing: ImageRequest, answer: Pointed | Absent
    ) -> bytes:
        """The immutable URL of the image that a name or an id points at, on this proxy."""
        describe(request, answer, self._cache.lifetimes)
        if isinstance(answer, Absent):
            raise NotInArchive
        image = answer.target.ref.at(thing.size).own_request
        extension = answer.target.extension if thing.size == ORIGINAL else "jpg"
        path = spell(image) + ("" if extension is None else f".{extension}")
        request.setResponseCode(307)
        request.setHeader(b"location", f"{request.base}{path}".encode())
        return sized(request, b"")


def _listing(request: LoggedRequest, listing: PublicListing, base: str) -> Body:
    source, validators = listing.by(base)
    return Body(source, span_to_send(request, None, validators))


def _explain_unless_left(failure: Failure, request: LoggedRequest) -> bytes | int:
    return NOT_DONE_YET if failure.check(CancelledError) else explain(request, failure)


def _finish(rendered: bytes | int, request: LoggedRequest) -> None:
    """What Request.render() does with an answer that comes at once."""
    if isinstance(rendered, bytes):
        request.write(rendered)
        request.finish()
