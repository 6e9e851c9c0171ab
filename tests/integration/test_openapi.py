"""coverart/openapi.json is true: schemathesis sends what it describes and judges each answer by it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import attrs
import pytest_twisted
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS, load_all_checks
from twisted.internet.threads import deferToThread

from coverart import __version__
from coverart.errors import CoverError
from coverart.simulator.faults import Html, Refuse, Rule, Stall, Status
from coverart.simulator.service import Simulator
from coverart.web.operators import openapi

warnings.filterwarnings("ignore", module="schemathesis")

TOKEN = "secret"  # noqa: S105
METHODS = ("get", "head", "options", "post", "put", "delete", "patch", "trace")
load_all_checks()
CHECKED = CHECKS.get_by_names(
    [
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "allow_header_conformance",
    ]
)
NOT_A_RELEASE = "00000000-0000-4000-8000-00000000dead"


@attrs.frozen
class Known:
    """Something that is in the archive: parameters of a path, for each kind of path."""

    release: dict[str, str]
    group: dict[str, str]
    event: dict[str, str]

    def of(self, path: str) -> dict[str, str]:
        """What fills the parameters of that path."""
        if "/release-group/" in path:
            return self.group
        return self.event if "/event/" in path else self.release


def known(sim: Simulator) -> Known:
    """The first release, group and event of the catalogue."""
    item, event = sim.catalogue.release(0), sim.catalogue.event(0)
    front = item.front
    assert front is not None
    return Known(
        {"mbid": item.mbid, "again": item.mbid, "image": "front-250", "file": f"{front.id}.jpg"},
        {"mbid": sim.catalogue.release_group(0).mbid, "image": "front-250"},
        {"mbid": event.mbid, "image": "front-250"},
    )


def operations() -> Iterator[Any]:
    """Every operation of the description."""
    found: Any
    for found in schemathesis.openapi.from_dict(openapi()).get_all_operations():
        yield found.ok()


def filled(operation: Any, what: dict[str, str]) -> dict[str, str]:
    """Those of the values that a path has a place for."""
    return {name: value for name, value in what.items() if f"{{{name}}}" in operation.path}


def explore(url: str, there: Known) -> int:
    """In a thread: every operation, with parameters of its own making or of what there is."""
    sent = 0
    session = requests.Session()
    for operation in operations():

        def hold(case: Any, real: bool, token: bool) -> None:
            nonlocal sent
            sent += 1
            if real:
                case.path_parameters = filled(case.operation, there.of(case.operation.path))
            case.headers = {
                name: value
                for name, value in dict(case.headers or {}).items()
                # A header that no client could send is the HTTP library's business.
                if value.isprintable() and value.isascii() and value == value.strip()
            }
            case.headers["Authorization"] = f"Bearer {TOKEN}" if token else "Bearer wrong"
            answer = case.call(base_url=url, session=session, allow_redirects=False)
            assert answer.status_code != 500, case
            case.validate_response(answer, checks=CHECKED)

        strategies = {
            "case": operation.as_strategy(),
            "real": st.booleans(),
            "token": st.booleans(),
        }
        bounded = settings(
            max_examples=4,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        bounded(given(**strategies)(hold))()
    return sent


@pytest_twisted.ensureDeferred
async def test_every_operation_answers_as_described(sim, run) -> None:
    """Statuses, types, headers and bodies are the described ones, whatever is sent."""
    proxy = await run(COVER_ART_ADMIN_TOKEN=TOKEN)
    sent = await deferToThread(explore, proxy.url, known(sim))
    assert sent >= 2 * sum(1 for _ in operations())


@attrs.frozen
class Story:
    """A request and the status it must bring."""

    status: int
    path: str
    parameters: dict[str, str]
    headers: dict[str, str] = attrs.field(factory=dict)
    method: str = "GET"


def tell(url: str, stories: list[Story]) -> None:
    """In a thread: each story's answer has its status and is as described."""
    by_name = {(each.path, each.method.upper()): each for each in operations()}
    for story in stories:
        operation = by_name[story.path, story.method]
        case = operation.Case(path_parameters=story.parameters, headers=story.headers)
        answer = case.call(base_url=url, allow_redirects=False)
        assert answer.status_code == story.status, (story, answer.status_code, answer.content)
        case.validate_response(answer, checks=CHECKED)


IMAGE = "/release/{mbid}/{image}"
PURGE = "/admin/purge/release/{mbid}/{image}"


@pytest_twisted.ensureDeferred
async def test_every_status_is_described(sim, run) -> None:
    """Each status of the description comes about, with the headers it promises."""
    proxy = await run(COVER_ART_ADMIN_TOKEN=TOKEN, COVER_ART_UPSTREAM_TIMEOUT="1")
    there = known(sim)
    front = {"mbid": there.release["mbid"], "image": "front-250"}
    kept = await proxy.get(f"/release/{front['mbid']}/front-250")
    right, wrong = {"Authorization": f"Bearer {TOKEN}"}, {"Authorization": "Bearer x"}
    again = "/download/mbid-{mbid}/mbid-{again}-{file}"
    stories = [
        Story(200, IMAGE, front),
        Story(200, IMAGE, front, method="HEAD"),
        Story(200, IMAGE, front, method="OPTIONS"),
        Story(200, "/release/{mbid}/", {"mbid": front["mbid"]}),
        Story(206, IMAGE, front, {"Range": "bytes=0-9"}),
        Story(200, IMAGE, front, {"Range": "bytes=0-9, 20-29"}),
        Story(206, "/release/{mbid}/", {"mbid": front["mbid"]}, {"Range": "bytes=0-9"}),
        Story(304, IMAGE, front, {"If-None-Match": kept["ETag"]}),
        Story(304, IMAGE, front, {"If-None-Match": "*"}, "HEAD"),
        Story(400, again, there.release | {"again": NOT_A_RELEASE}),
        Story(404, IMAGE, {"mbid": NOT_A_RELEASE, "image": "front"}),
        Story(404, IMAGE, {"mbid": NOT_A_RELEASE, "image": "front"}, method="HEAD"),
        Story(412, IMAGE, front, {"If-Match": '"other"'}),
        Story(412, IMAGE, front, {"If-Match": '"other"'}, "HEAD"),
        Story(416, IMAGE, front, {"Range": "bytes=99999999-"}),
        Story(401, PURGE, front, wrong, "POST"),
        Story(200, PURGE, front, right, "POST"),
        Story(200, PURGE.replace("purge", "refresh"), front, right, "POST"),
    ]
    await deferToThread(tell, proxy.url, stories)
    numbered = iter(range(1, 20))

    async def broken(fault: Any, status: int, *methods: str) -> None:
        rule = sim.faults.add(Rule(hop="release", does=fault))
        other = {"mbid": sim.catalogue.release(next(numbered)).mbid, "image": "front"}
        for method in methods:
            await deferToThread(tell, proxy.url, [Story(status, IMAGE, other, method=method)])
        sim.faults.remove(rule)

    await broken(Html(), 502, "GET", "HEAD")
    await broken(Refuse(), 503, "GET", "HEAD")
    await proxy.restart()
    await broken(Stall(), 504, "GET", "HEAD")
    await proxy.restart()
    await broken(Status(code=503), 503, "GET", "HEAD")
    closed = await run("closed", COVER_ART_IMAGE_MODE="redirect")
    await deferToThread(
        tell,
        closed.url,
        [
            Story(307, IMAGE, front),
            Story(307, IMAGE, front, method="HEAD"),
            Story(403, PURGE, front, right, "POST"),
        ],
    )
    for prefix, status in (("/serve", 200), ("/redirect", 307)):
        of_images = [
            Story(status, path, {**there.release, **front}, method=method)
            for path in (IMAGE, again)
            for method in ("GET", "HEAD")
        ]
        listing = Story(200, "/release/{mbid}/", {"mbid": front["mbid"]})
        await deferToThread(tell, f"{closed.url}{prefix}", [*of_images, listing])


@pytest_twisted.ensureDeferred
async def test_the_ready_route_when_it_is_not(proxy) -> None:
    """Without its directory the proxy is not ready, and says so as described."""
    (proxy.root / ".incoming").rename(proxy.root / "elsewhere")
    await deferToThread(
        tell, proxy.url, [Story(503, "/ready", {}), Story(503, "/ready", {}, {}, "HEAD")]
    )


@pytest_twisted.ensureDeferred
async def test_other_methods(sim, run) -> None:
    """A method that a path does not describe is a 405 whose Allow tells those it does."""
    proxy = await run()
    there = known(sim)
    for path, item in openapi()["paths"].items():
        found = item
        if "$ref" in item:
            found = openapi()["components"]["pathItems"][item["$ref"].rpartition("/")[2]]
        described = {method for method in METHODS if method in found}
        for method in set(METHODS) - described:
            filled_in = path.format(**there.of(path)) if "{" in path else path
            answer = await proxy.get(filled_in, method.upper())
            assert answer.status == 405, (path, method)
            if method != "head":
                assert set(answer.json) == {"error"}
            allowed = {each.lower() for each in answer["Allow"].split(", ")}
            assert allowed == described, (path, method)


@pytest_twisted.ensureDeferred
async def test_it_is_served(proxy) -> None:
    """The running proxy gives its own description, of its version; the page for people leads there."""
    answer = await proxy.get("/openapi.json")
    assert answer["Content-Type"] == "application/json"
    assert answer.json["info"]["version"] == __version__
    assert answer.json["openapi"].startswith("3.1")
    assert b'href="/openapi.json"' in (await proxy.get("/")).body


def kinds(of: type[CoverError]) -> Iterator[type[CoverError]]:
    """A kind of error and all that are of it."""
    yield of
    for below in of.__subclasses__():
        yield from kinds(below)


def test_every_kind_of_error_is_described() -> None:
    """What can be raised has a status that the description knows."""
    described = {int(each) for one in operations() for each in one.definition.raw["responses"]}
    assert {kind.status for kind in kinds(CoverError)} <= described
