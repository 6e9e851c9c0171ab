"""
Hits of images, before any route: most requests to a cache are hits.

Finding a route and chaining Deferreds cost as much as all the rest of such an answer
(`python -m bench --rows hit-accel,hit-redis`). Whatever is no plain hit goes to the route.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from coverart.cache.answers import Held
from coverart.cache.lookup import CoverCache
from coverart.errors import CoverError
from coverart.model import ImageRequest
from coverart.web.access_log import LoggedRequest
from coverart.web.covers import CoverRoutes
from coverart.web.headers import explain, refuse


class HitsFirst(Resource):
    """The archive's routes, with a short way for hits."""

    isLeaf = True

    def __init__(self, cache: CoverCache, routes: CoverRoutes) -> None:
        super().__init__()
        self._cache = cache
        self._routes = routes
        self._routed: IResource = routes.app.resource()

    def render(self, request: LoggedRequest) -> bytes | int:
        thing = request.thing
        if not isinstance(thing, ImageRequest) or self._routes.redirects(thing):
            return self._by_route(request)
        try:
            hit = self._cache.hit(thing)
        except CoverError as error:
            return refuse(request, error)
        if not isinstance(hit, Deferred):
            return self._answer(request, hit)
        request.notifyFinish().addErrback(lambda _: hit.cancel())
        answer: Deferred[bytes | int] = hit.addCallback(lambda held: self._answer(request, held))
        answer.addErrback(_explain, request).addCallbacks(_deliver, _left, callbackArgs=(request,))
        return NOT_DONE_YET

    def _answer(self, request: LoggedRequest, held: Held | None) -> bytes | int:
        sent = None if held is None else self._routes.send_hit(request, held)
        return self._by_route(request) if sent is None else sent

    def _by_route(self, request: LoggedRequest) -> bytes | int:
        # Routes match the canonical path, whatever was sent.
        request.postpath = request.key[1:].encode().split(b"/")
        rendered: bytes | int = self._routed.render(request)
        return rendered


def _explain(failure: Failure, request: LoggedRequest) -> bytes | Failure:
    return failure if failure.check(CancelledError) else explain(request, failure)


def _deliver(rendered: bytes | int, request: LoggedRequest) -> None:
    """What Request.render() does with an answer that comes at once."""
    if not isinstance(rendered, bytes):
        return
    request.setHeader(b"content-length", b"%d" % len(rendered))
    request.write(rendered)
    request.finish()


def _left(failure: Failure) -> None:
    """The client did not wait."""
    failure.trap(CancelledError)
