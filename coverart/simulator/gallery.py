"""The studio's drawings for a reactor: in threads, and each drawing once."""

from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from coverart.simulator.catalogue import Image
from coverart.simulator.draw import Picture, Studio, picture_of, stamp
from coverart.simulator.stamp import Stampable

_DRAWING_AT_ONCE = 2  # a large drawing takes about 150 MB while it lasts


class Gallery:
    """Gives the bytes of images to the hops, drawing in threads, each drawing once."""

    def __init__(self, reactor: Any, studio: Studio) -> None:
        self.studio = studio
        self._reactor = reactor
        self._turns = DeferredSemaphore(_DRAWING_AT_ONCE)
        self._drawing: dict[tuple[Picture, int | None], list[Deferred[Stampable]]] = {}

    def ready(self, image: Image, size: int | None) -> bytes | None:
        """Give the bytes if that takes no drawing."""
        file = self.studio.kept(picture_of(image, size, self.studio.variants), size)
        return None if file is None else stamp(file, image, size)

    async def bytes(self, image: Image, size: int | None) -> bytes:
        """Give the bytes the archive sends for an image; `size` None means the original."""
        picture = picture_of(image, size, self.studio.variants)
        file = self.studio.kept(picture, size)
        if file is None:
            file = await self._drawn(picture, size)
        return stamp(file, image, size)

    def _drawn(self, picture: Picture, size: int | None) -> Deferred[Stampable]:
        # One Deferred for each that waits, since a client that leaves cancels its own.
        waiting: Deferred[Stampable] = Deferred()
        waiters = self._drawing.setdefault((picture, size), [])
        waiters.append(waiting)
        if len(waiters) == 1:
            job = self._turns.run(
                deferToThreadPool,
                self._reactor,
                self._reactor.getThreadPool(),
                self.studio.rendered,
                picture,
                size,
            )
            job.addBoth(self._tell, (picture, size))
        return waiting

    def _tell(self, result: Stampable | Failure, key: tuple[Picture, int | None]) -> None:
        for waiting in self._drawing.pop(key):
            if not waiting.called:
                waiting.callback(result)  # a Failure goes down the errback side
