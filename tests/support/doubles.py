"""Stand-ins for the parts that need a reactor, a thread or an archive."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, execute, fail, maybeDeferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http import Request
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer


def folder(case: SynchronousTestCase) -> pathlib.Path:
    """A folder of a test's own, gone after it whoever runs it."""
    made = tempfile.TemporaryDirectory()
    case.addCleanup(made.cleanup)
    return pathlib.Path(made.name)


def at_once(call: Callable[..., Any], /, *args: Any) -> Deferred[Any]:
    """Runs what would run in a thread where it stands."""
    return execute(call, *args)


class HeldBack:
    """Runs what would run in a thread only when told to, in the order it was asked for."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []
        self.ended = False
        """Its process is gone: what is collected as garbage can wait for nothing more."""

    def __call__(self, call: Callable[..., Any], /, *args: Any) -> Deferred[Any]:
        if self.ended:
            return succeed(None)
        d: Deferred[Any] = Deferred()
        self.waiting.append((d, call, args))
        return d

    def let_one_go(self, place: int = 0) -> None:
        """Run the call that waits longest, or another."""
        d, call, args = self.waiting.pop(place)
        maybeDeferred(call, *args).chainDeferred(d)

    def let_all_go(self) -> None:
        """Run what waits, and what that leads to."""
        while self.waiting:
            self.let_one_go()


Answer = Callable[[Request], Any]
"""Plays one answer of the archive; returns what a Resource's render() does."""


class ScriptedArchive(Resource):
    """
    The archive as a script says: an agent over it answers without a socket.

    `script` tells answers by URL, each used once in turn, the last for good; what it does not
    know is 404. `asked` tells the URLs in the order they were asked for. While `down` is set, that
    is what comes of all requests.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.script: dict[str, list[Answer | Exception]] = {}
        self.asked: list[str] = []
        self.down: Exception | None = None
        self.requests: list[Request] = []
        self._traversal = RequestTraversalAgent(self)

    def on(self, url: str, *answers: Answer | Exception) -> None:
        """Say what a URL is answered with."""
        self.script[url] = list(answers)

    def http(self) -> HTTPClient:
        """A treq client whose requests end here."""
        return HTTPClient(_ScriptedAgent(self, self._traversal))

    def flush(self) -> None:
        """Carry bytes between the two sides until none is left."""
        for _ in range(5):
            self._traversal.flush()

    def turn(self, url: str) -> Answer | Exception:
        """The answer whose turn it is."""
        answers = self.script.get(url) or [reply(404, b"not found")]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def render(self, request: Request) -> Any:
        self.requests.append(request)
        host = request.getHeader("host")
        scheme = "https" if request.isSecure() else "http"
        answer = self.turn(f"{scheme}://{host}{request.uri.decode()}")
        assert not isinstance(answer, Exception)
        return answer(request)


@implementer(IAgent)
class _ScriptedAgent:
    def __init__(self, archive: ScriptedArchive, agent: IAgent) -> None:
        self._archive = archive
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Any:
        url = uri.decode()
        self._archive.asked.append(url)
        if self._archive.down is not None:
            return fail(self._archive.down)
        answers = self._archive.script.get(url)
        if answers and isinstance(answers[0], Exception):
            error = self._archive.turn(url)
            assert isinstance(error, Exception)
            return fail(error)
        return self._agent.request(method, uri, headers, bodyProducer)


def reply(code: int, body: bytes = b"", **headers: str) -> Answer:
    """A whole answer; underscores in names of headers stand for hyphens."""

    def answer(request: Request) -> bytes:
        request.setResponseCode(code)
        for name, value in headers.items():
            request.setHeader(name.replace("_", "-").encode(), value.encode("latin-1"))
        return body

    return answer


def redirect(location: str, code: int = 307) -> Answer:
    """A redirect."""
    return reply(code, b"see elsewhere", location=location)


def cut(body: bytes, length: int) -> Answer:
    """An answer that ends before it should."""

    def answer(request: Request) -> Any:
        request.setHeader(b"content-length", b"%d" % length)
        request.write(body)
        transport: Any = request.transport
        transport.loseConnection()
        return NOT_DONE_YET

    return answer


def hang_up(request: Request) -> Any:
    """No answer at all."""
    transport: Any = request.transport
    transport.loseConnection()
    return NOT_DONE_YET


def stall(body: bytes = b"", length: int = 1000) -> Answer:
    """An answer that begins and falls silent; without a body, none begins."""

    def answer(request: Request) -> Any:
        if body:
            request.setHeader(b"content-length", b"%d" % length)
            request.write(body)
        return NOT_DONE_YET

    return answer
