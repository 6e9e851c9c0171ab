"""Answers a size that the archive has not made with another, as substitutes.py chooses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import attrs

from coverart.cache.answers import Absent, Answer, Flowing, Held, Status
from coverart.cache.download import Wanted
from coverart.cache.fetch import Fetch
from coverart.cache.held_files import HeldFiles
from coverart.cache.single_flight import Announce
from coverart.cache.substitutes import Substitutes
from coverart.errors import NotWanted
from coverart.model import Found, ImageKey, ImageRequest, Thing

FetchOne = Callable[[ImageRequest, Found, Fetch, Announce[Answer], Wanted], Awaitable[Answer]]


@attrs.define(eq=False, kw_only=True)
class MissingSizes:
    """Finds what stands in for a missing size: held, or fetched in the fetch that found it missing."""

    _policy: Substitutes
    _files: HeldFiles
    _now: Callable[[], float]
    _held: Callable[[Found, Status], Held | None]
    """What the index knows as an answer, if the disk agrees."""

    def image(self, thing: Thing, found: Found) -> ImageKey | None:
        """The image that a remembered 404 may be of one size of, if something could stand in."""
        if isinstance(thing, ImageRequest) and self._policy.may(thing):
            return thing.image(found.target)
        return None

    async def held(self, thing: Thing, absent: Absent) -> Held | Absent | None:
        """
        The answer that needs no fetch.

        :param absent: what is remembered; the answer where nothing stands in.
        :returns: None if the archive has to be asked for a larger size.
        """
        choices = await self._choices(thing, absent)
        status = Status.STALE if absent.asked_again else Status.HIT
        for request, found in choices:
            if (held := self._held(found, status)) is not None:
                return attrs.evolve(held, substitute=request.size)
        return None if choices else absent

    async def fetched(
        self,
        thing: Thing,
        absent: Absent,
        fetch: Fetch,
        announce: Announce[Answer],
        fetch_one: FetchOne,
    ) -> Answer:
        """
        The answer where the archive may be asked, in what is left of a fetch's time.

        :raises CoverError: the archive fails: whether it has a larger size is not known.
        """
        for request, found in await self._choices(thing, absent):
            got: Answer | None = self._held(found, Status.MISS)
            if got is None:
                try:
                    got = await fetch_one(
                        request,
                        found,
                        fetch,
                        partial(_announce_as, request.size, announce),
                        partial(self._policy.suits, request.size),
                    )
                except NotWanted:
                    got = None
            if isinstance(got, Held):
                got = attrs.evolve(got, hops=fetch.hops)
            if isinstance(got, Held | Flowing) and self._suits(request, got):
                return attrs.evolve(got, substitute=request.size)
            if not isinstance(got, Absent) and absent.image is not None:
                self._policy.rule_out(absent.image)
        return absent

    def _suits(self, request: ImageRequest, got: Held | Flowing) -> bool:
        # A download was asked as it began; what another process stored was not.
        return isinstance(got, Flowing) or self._policy.suits(
            request.size, got.entry.size_bytes, got.entry.media
        )

    async def _choices(self, thing: Thing, absent: Absent) -> Sequence[tuple[ImageRequest, Found]]:
        if absent.image is None:
            return ()
        larger = self._policy.larger(thing)
        known = await self._files.all_known(larger)
        looked_up = list(zip(larger, known, strict=True))
        return self._policy.choose(absent.image, looked_up, self._now())


def _announce_as(size: int, announce: Announce[Answer], answer: Answer) -> None:
    if isinstance(answer, Flowing):
        announce(attrs.evolve(answer, substitute=size))
