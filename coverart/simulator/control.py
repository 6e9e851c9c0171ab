"""
The control port: everything a test can do to the archive in Python, as JSON over HTTP.

=======  ==============================  ==========================================================
GET      /health                         it is up; with the ports and the proxy's settings
GET      /examples                       a path for each kind of thing; see `Catalogue.examples`
GET      /walk?entity=&start=&count=     MBIDs of an entity, for load generators
GET      /expected?path=                 what the hops should give for a path, and the file's digest
GET      /rules                          the rules that stand
POST     /rules                          add one (`faults.rule_from_json`) or a list of them
DELETE   /rules, /rules/{number}         remove all, which also opens all gates, or one
GET      /gates                          the gates and how many wait at each
GET      /gates/{name}?waiting=n         answers once n requests wait there
POST     /gates/{name}/open, close,      let all through from now on; hold them again;
         release?count=n                 let through the first n that wait now
GET      /counts                         requests by hop and path, connections
DELETE   /counts                         begin again
GET      /requests                       the last requests with their headers
POST     /catalogue                      ``{"change": "set_front", "mbid": …, "image": …}``,
                                         ``remove_art``, ``add_art``, ``derive``,
                                         ``{"change": "merge", "mbid": …, "into": …}``,
                                         ``{"change": "choose", "group": …, "release": …}``
DELETE   /catalogue                      forget all changes
=======  ==============================  ==========================================================
"""

import hashlib
import json
from typing import Any, Protocol
from urllib.parse import urlsplit

import attrs
from klein import Klein
from twisted.web.iweb import IRequest

from coverart.simulator import answers
from coverart.simulator.answers import Answer, FileWanted, Places
from coverart.simulator.catalogue import Catalogue
from coverart.simulator.counts import Counts
from coverart.simulator.faults import Faults, rule_from_json, rule_to_json
from coverart.simulator.gallery import Gallery

_MAX_WALK = 100_000


class Controlled(Protocol):
    """What the control port needs of a simulator."""

    catalogue: Catalogue
    faults: Faults
    counts: Counts
    gallery: Gallery
    ports: dict[str, int]

    def environment(self) -> dict[str, str]: ...

    async def settled(self) -> None: ...


class RequestError(Exception):
    """The request does not say what to do; the text says why."""


class Control:
    """The Klein application behind the control port."""

    app = Klein()

    def __init__(self, simulator: Controlled, places: Places) -> None:
        self._simulator = simulator
        self._places = places

    @app.handle_errors(RequestError, ValueError, LookupError)
    def refused(self, request: IRequest, failure: Any) -> bytes:
        request.setResponseCode(400)
        return _json(request, {"error": str(failure.value)})

    @app.route("/health", methods=["GET"])
    def health(self, request: IRequest) -> bytes:
        simulator = self._simulator
        return _json(
            request,
            {
                "status": "healthy",
                "ports": simulator.ports,
                "environment": simulator.environment(),
                "releases": simulator.catalogue.releases,
                "seed": simulator.catalogue.seed,
            },
        )

    @app.route("/examples", methods=["GET"])
    def examples(self, request: IRequest) -> bytes:
        return _json(request, self._simulator.catalogue.examples())

    @app.route("/walk", methods=["GET"])
    def walk(self, request: IRequest) -> bytes:
        entity = _argument(request, "entity") or "release"
        if entity not in {"release", "release-group", "event"}:
            raise RequestError("entity is release, release-group or event")
        start, count = _number(request, "start", 0), _number(request, "count", 1000)
        found = self._simulator.catalogue.walk(entity, start, min(count, _MAX_WALK))  # type: ignore[arg-type]
        return _json(request, list(found))

    @app.route("/expected", methods=["GET"])
    async def expected(self, request: IRequest) -> bytes:
        path = _argument(request, "path")
        if path is None:
            raise RequestError("path is missing")
        simulator = self._simulator
        answer = await expected(simulator.catalogue, self._places, simulator.gallery, path)
        return _json(request, attrs.asdict(answer))

    # Rules

    @app.route("/rules", methods=["GET"])
    def rules(self, request: IRequest) -> bytes:
        standing = [
            {"number": number, "used": used, **rule_to_json(rule)}
            for number, rule, used in self._simulator.faults
        ]
        return _json(request, standing)

    @app.route("/rules", methods=["POST"])
    async def add_rules(self, request: IRequest) -> bytes:
        body = _body(request)
        # All are read before the first is added: a list with one mistake changes nothing.
        rules = [rule_from_json(each) for each in (body if isinstance(body, list) else [body])]
        numbers = [self._simulator.faults.add(rule) for rule in rules]
        await self._simulator.settled()
        return _json(request, {"numbers": numbers})

    @app.route("/rules", methods=["DELETE"])
    async def clear_rules(self, request: IRequest) -> bytes:
        self._simulator.faults.clear()
        await self._simulator.settled()
        return _json(request, {})

    @app.route("/rules/<int:number>", methods=["DELETE"])
    async def remove_rule(self, request: IRequest, number: int) -> bytes:
        self._simulator.faults.remove(number)
        await self._simulator.settled()
        return _json(request, {})

    # Gates

    @app.route("/gates", methods=["GET"])
    def gates(self, request: IRequest) -> bytes:
        return _json(request, self._simulator.faults.gates.as_json())

    @app.route("/gates/<name>", methods=["GET"])
    async def gate(self, request: IRequest, name: str) -> bytes:
        gates = self._simulator.faults.gates
        wanted = _number(request, "waiting", 0)
        # A client that leaves takes its Deferred along: Klein cancels what it awaits.
        return _json(request, {"waiting": await gates.reached(name, wanted)})

    @app.route("/gates/<name>/<action>", methods=["POST"])
    def move_gate(self, request: IRequest, name: str, action: str) -> bytes:
        gates = self._simulator.faults.gates
        if action == "open":
            return _json(request, {"released": gates.open(name)})
        if action == "release":
            count = _number(request, "count", gates.waiting(name))
            return _json(request, {"released": gates.release(name, count)})
        if action == "close":
            gates.close(name)
            return _json(request, {})
        raise RequestError("a gate can open, close or release")

    # Counts

    @app.route("/counts", methods=["GET"])
    def counts(self, request: IRequest) -> bytes:
        return _json(request, self._simulator.counts.as_json())

    @app.route("/counts", methods=["DELETE"])
    def clear_counts(self, request: IRequest) -> bytes:
        self._simulator.counts.clear()
        return _json(request, {})

    @app.route("/requests", methods=["GET"])
    def requests(self, request: IRequest) -> bytes:
        recent = [
            {
                "hop": seen.hop,
                "method": seen.method,
                "path": seen.path,
                "headers": {
                    name.decode("latin-1"): [value.decode("latin-1") for value in values]
                    for name, values in seen.headers.getAllRawHeaders()
                },
            }
            for seen in self._simulator.counts.recent
        ]
        return _json(request, recent)

    # Catalogue

    @app.route("/catalogue", methods=["POST"])
    def change(self, request: IRequest) -> bytes:
        body = _body(request)
        if not isinstance(body, dict):
            raise RequestError("a change is a JSON object")
        catalogue = self._simulator.catalogue
        match body:
            case {"change": "set_front", "mbid": str(mbid), "image": int(image)}:
                catalogue.set_front(mbid, image)
            case {"change": "remove_art", "mbid": str(mbid)}:
                catalogue.remove_art(mbid)
            case {"change": "add_art", "mbid": str(mbid)}:
                added = catalogue.add_art(mbid, front=bool(body.get("front", True)))
                return _json(request, {"image": added.id})
            case {"change": "derive", "mbid": str(mbid)}:
                catalogue.derive(mbid)
            case {"change": "merge", "mbid": str(mbid), "into": str(into)}:
                catalogue.merge(mbid, into)
            case {"change": "choose", "group": str(group), "release": str(release)}:
                catalogue.choose(group, release)
            case _:
                raise RequestError("no such change, or a part of it is missing")
        return _json(request, {})

    @app.route("/catalogue", methods=["DELETE"])
    def reset(self, request: IRequest) -> bytes:
        self._simulator.catalogue.reset()
        return _json(request, {})


@attrs.frozen(kw_only=True)
class Expected:
    """
    What following the redirects from a path should give, faults aside.

    :ivar status: of the last hop reached; 200 comes with all of the rest.
    :ivar location: what hop 1 redirects to.
    :ivar type: the exact Content-Type of the bytes, without a charset.
    """

    status: int
    location: str | None = None
    type: str | None = None
    length: int | None = None
    sha256: str | None = None


async def expected(catalogue: Catalogue, places: Places, gallery: Gallery, path: str) -> Expected:
    """Say what the hops should give for a path of hop 1, such as ``/release/{mbid}/front-250``."""
    host = "event" if path.startswith("/event") else "release"
    first = answers.redirect_service(catalogue, places, host, "GET", path)
    location = (first.header(b"Location") or b"").decode("ascii")
    if not location:
        return Expected(status=first.status)
    inside = urlsplit(location).path.removeprefix("/download")
    last = answers.node(catalogue, "GET", f"/0/items{inside}")
    if isinstance(last, FileWanted):
        last = answers.file_answer(last, await gallery.bytes(last.image, last.size))
    return _digested(last, location)


def _digested(answer: Answer, location: str) -> Expected:
    if answer.status != 200:
        return Expected(status=answer.status, location=location)
    return Expected(
        status=200,
        location=location,
        type=(answer.header(b"Content-Type") or b"").partition(b";")[0].decode("ascii"),
        length=len(answer.body),
        sha256=hashlib.sha256(answer.body).hexdigest(),
    )


def _json(request: IRequest, value: object) -> bytes:
    request.setHeader(b"Content-Type", b"application/json")
    return json.dumps(value).encode() + b"\n"


def _body(request: IRequest) -> Any:
    try:
        return json.loads(request.content.read())
    except ValueError as error:
        raise RequestError(f"the body is no JSON: {error}") from error


def _argument(request: IRequest, name: str) -> str | None:
    values = request.args.get(name.encode())
    return values[0].decode("utf-8") if values else None


def _number(request: IRequest, name: str, default: int) -> int:
    given = _argument(request, name)
    if given is None:
        return default
    if not given.isdecimal():
        raise RequestError(f"{name} is a number")
    return int(given)
