"""What operators do by hand: purge a thing, or ask the archive about it now."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import attrs

from coverart.cache.answers import Answer
from coverart.cache.miss import Fetcher
from coverart.cache.refresh import Refreshes
from coverart.cache.single_flight import Flight
from coverart.index.base import Index
from coverart.model import ImageRequest, ListingKey, Thing, name_of


@attrs.define(eq=False, kw_only=True)
class OperatorActions:
    """Purges and refreshes, beside what is fetched for clients meanwhile."""

    _index: Index
    _fetcher: Fetcher
    _refreshes: Refreshes
    _requests: Flight[Thing, Answer]
    """What is fetched for clients."""
    _get: Callable[[Thing], Coroutine[Any, Any, Answer]]
    """Answers a request."""

    async def purge(self, thing: Thing) -> bool:
        """
        Forget a thing and remove its file. :returns: whether anything was known of it.

        A fetch of it in this process is waited for, a whole fetch's time at most, so that nothing
        is stored afterwards. One of another process that is under way is stored after it.
        """
        found = await self._fetcher.held.known(thing)
        under_way = [self._requests.over(thing), self._refreshes.over(thing)]
        if isinstance(thing, ImageRequest) and (image := thing.image(found.target)) is not None:
            under_way.append(self._fetcher.images.over(image))
        for over in under_way:
            await over
        found = await self._fetcher.held.known_or_on_disk(thing)
        known = await self._index.forget_absence(name_of(thing))
        if isinstance(thing, ImageRequest):
            if (image := thing.image(found.target)) is not None:
                known |= await self._index.forget_absence(image)
            known |= found.alias is not None
            await self._fetcher.names.unlink(thing.alias)
        if found.key is not None and found.entry is not None:
            known |= await self._fetcher.held.drop(found.key, found.entry)
        return known

    async def refresh(self, thing: Thing) -> Answer:
        """
        Ask the archive about a thing now, whatever is held of it.

        :raises CoverError: the archive can't be asked; what is held stays.
        """
        # A fetch under way may have asked before what the operator knows of happened.
        await self._requests.over(thing)
        found = await self._fetcher.held.known_or_on_disk(thing)
        held = True
        # No claim on the name or the listing: an operator does not wait for what another process
        # asked before, and two answers are told apart by when they were asked for.
        async with self._fetcher.begin() as fetch:
            if found.alias is not None or isinstance(thing, ListingKey):
                await self._refreshes.ask_again(thing, fetch)
            else:
                held = found.entry is not None and await self._fetcher.images.fetch_again(
                    thing, found.target, fetch
                )
        if not held:
            # The archive has it no more, or knows it by another MBID.
            await self.purge(thing)
        answer = await self._get(thing)
        if (landing := self._requests.landing(thing)) is not None:
            # The operator is told when it is there.
            await landing
            answer = attrs.evolve(await self._get(thing), status=answer.status)
        return answer
