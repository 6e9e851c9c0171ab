"""
The archive's routes: an answer of the cache becomes status, headers and a body.

No caching rules here. The same bytes and headers leave whether nginx sends the file
(X-Accel-Redirect) or this process does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import attrs
from klein import Klein
from twisted.logger import Logger
from twisted.python.failure import Failure

from coverart.archive.paths import spell
from coverart.cache.answers import Absent, Flowing, Held, Passing, Pointed, Status
from coverart.cache.download import InThread
from coverart.cache.lookup import CoverCache
from coverart.content import ENOUGH, check_type
from coverart.errors import BadUpstream, CoverError, NotInArchive, StoreFailed
from coverart.model import ORIGINAL, ImageRequest, ListingKey
from coverart.web.access_log import LoggedRequest
from coverart.web.conditional import Validators
from coverart.web.delivery import ArrivingBody, FileBody
from coverart.web.headers import (
    cacheable,
    explain,
    parts,
    refuse,
    say_status,
    sized,
    typed,
    unchanged,
    unsay,
)
from coverart.web.public_listings import PackedBody, PublicListings, pack

_OF_THE_FILE = frozenset({errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENOTDIR})
"""Not to be opened, whoever tries again: a symlink, a folder, a pipe, a file of somebody else's."""


@attrs.frozen(kw_only=True)
class Ways:
    """How answers are sent (design section 4)."""

    accel: str | None = None
    """Internal prefix for X-Accel-Redirect; None: this process sends files itself."""
    public_url: str | None = None
    """Base of the URLs written into listings; None: listings pass as they are."""
    redirect_names: bool = False
    """COVER_ART_IMAGE_MODE=redirect: a front or back is answered with the URL of its image."""


class CoverRoutes:
    """Listings and images, in all the archive's spellings. Paths were parsed before (site.py)."""

    app = Klein()
    log = Logger()

    def __init__(
        self,
        cache: CoverCache,
        ways: Ways,
        in_thread: InThread,
        hit: Callable[[], None] = lambda: None,
    ) -> None:
        """:param hit: told of each hit."""
        self._cache = cache
        self._in_thread = in_thread
        self._ways = ways
        self._public = (
            None
            if ways.public_url is None
            else PublicListings(cache.store, ways.public_url, in_thread)
        )
        self._hit = hit

    def redirects(self, thing: ImageRequest) -> bool:
        """Say whether a name is answered with the URL of its image."""
        return self._ways.redirect_names and not isinstance(thing.alias.name, int)

    @app.route("/release/<path:_>")
    @app.route("/release-group/<path:_>")
    @app.route("/event/<path:_>")
    async def art(self, request: LoggedRequest, _: str) -> Any:
        """Answer with the image or listing that the path names."""
        thing: ImageRequest | ListingKey = request.thing
        if isinstance(thing, ImageRequest) and self.redirects(thing):
            pointed = await self._cache.point(thing.alias)
            self._say(request, thing, pointed)
            return self._pointed(request, thing, pointed)
        answer = await self._cache.get(thing)
        if isinstance(answer, Held):
            if answer.status is Status.HIT:
                self._hit()
            try:
                self._say(request, thing, answer)
                return await self._sent(request, answer)
            except (OSError, BadUpstream) as error:
                unsay(request)
                await self._set_right(answer, error)
                answer = await self._cache.get(thing)
        self._say(request, thing, answer)
        if isinstance(answer, Flowing):
            return self._flowing(request, answer)
        if isinstance(answer, Passing):
            return await self._passing(request, answer)
        if isinstance(answer, Held):
            return await self._sent(request, answer)
        raise NotInArchive

    def send_hit(self, request: LoggedRequest, held: Held) -> bytes | int | None:
        """
        Answer with a hit that is an image. :returns: as IResource.render(), but None for a file
        that can't be sent: art() repairs it.
        """
        try:
            self._say(request, request.thing, held)
            answer = self._held(request, held)
        except (OSError, BadUpstream):
            # Gone or spoilt between the look and the opening.
            unsay(request)
            return None
        except CoverError as error:
            return refuse(request, error)
        self._hit()
        sent: bytes | int = answer if isinstance(answer, bytes) else answer.render(request)
        return sent

    async def _set_right(self, held: Held, error: OSError | BadUpstream) -> None:
        """
        See to it that a second look at the cache does not find a file that can't be served.

        :raises StoreFailed: that is no fault of the file's.
        """
        if isinstance(error, FileNotFoundError):
            # Evicted between the look and the opening: the second look finds it missing.
            return
        if isinstance(error, OSError) and error.errno not in _OF_THE_FILE:
            self.log.warn(
                "can't serve {path}: {reason}; answering 503",
                path=held.path,
                reason=error.strerror,
            )
            raise StoreFailed(f"{held.path}: {error.strerror}") from error
        await self._cache.spoilt(held)

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """What could not be done, in the words of the contract."""
        return explain(request, failure)

    def _say(
        self,
        request: LoggedRequest,
        thing: ImageRequest | ListingKey,
        answer: Held | Flowing | Passing | Absent | Pointed,
    ) -> None:
        unstored = answer.unstored if isinstance(answer, Flowing | Passing) else None
        # What a fetch took is told of who began it.
        hops = 0 if answer.joined else answer.hops
        say_status(request, answer.status, joined=answer.joined, hops=hops, unstored=unstored)
        cacheable(request, thing, self._cache.lifetimes)

    async def _sent(self, request: LoggedRequest, held: Held) -> Any:
        if held.entry.media is None and self._public is not None:
            return await self._rewritten(request, held, self._public)
        return self._held(request, held)

    def _held(self, request: LoggedRequest, held: Held) -> Any:
        typed(request, held.entry.media)
        # A range is decided here: nginx would take one in a HEAD request, which is for GET alone,
        # and adds what it says of the file to a 416.
        whole = request.method == b"GET" and request.getHeader(b"range") is None
        if self._ways.accel is not None and whole:
            request.setHeader(b"x-accel-redirect", f"{self._ways.accel}{held.path}".encode())
            return b""
        fd = self._cache.store.open(held.path)
        try:
            if held.entry.media is not None:
                # The index knows files by their names, which is all a rebuild reads of them.
                check_type(os.pread(fd, ENOUGH, 0), held.entry.media)
            status = os.fstat(fd)
            validators = Validators(size_bytes=status.st_size, modified=int(status.st_mtime))
            to_send = parts(request, validators, held.entry.media, single=False)
        except BaseException:
            os.close(fd)
            raise
        return FileBody(fd, to_send)

    async def _rewritten(self, request: LoggedRequest, held: Held, public: PublicListings) -> Any:
        """A listing whose URLs lead to this proxy, so always sent from here."""
        typed(request, None)
        version = public.version(held.path)
        validators = public.validators(version)
        # Before it is made: whoever asks for nothing but a 304 costs no more than a look.
        if unchanged(request, validators):
            return b""
        body = await public.get(held.path, version)
        return self._packed(request, body, attrs.evolve(validators, size_bytes=body.size_bytes))

    async def _passing(self, request: LoggedRequest, passing: Passing) -> Any:
        """A listing that lies nowhere."""
        typed(request, None)
        unstored = passing.listing
        body = await self._in_thread(pack, unstored.body, self._ways.public_url)
        modified = int(unstored.stored_at)
        validators = Validators(size_bytes=body.size_bytes, modified=modified)
        return self._packed(request, body, validators)

    @staticmethod
    def _packed(request: LoggedRequest, body: PackedBody, validators: Validators) -> Any:
        to_send = parts(request, validators, None, single=True)
        return body.resource(to_send[0].span) if to_send else b""

    def _flowing(self, request: LoggedRequest, flowing: Flowing) -> Any:
        incoming = flowing.arriving.incoming
        if self._ways.accel is not None:
            # nginx would wait for a buffer full of it.
            request.setHeader(b"x-accel-buffering", b"no")
        typed(request, incoming.media)
        validators = Validators(size_bytes=incoming.size_bytes, modified=int(incoming.stored_at))
        to_send = parts(request, validators, incoming.media, single=True)
        return ArrivingBody(incoming, to_send[0].span) if to_send else b""

    def _pointed(
        self, request: LoggedRequest, thing: ImageRequest, answer: Pointed | Absent
    ) -> bytes:
        """The immutable URL of the image that a name points at, on this proxy."""
        if isinstance(answer, Absent):
            raise NotInArchive
        image = answer.target.ref.at(thing.size).own_request
        extension = answer.target.extension if thing.size == ORIGINAL else "jpg"
        path = spell(image) + ("" if extension is None else f".{extension}")
        request.setResponseCode(307)
        request.setHeader(b"location", f"{self._ways.public_url or ''}{path}".encode())
        request.defaultContentType = None
        return sized(request, b"")
