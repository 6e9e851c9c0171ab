"""`python -m tests.browsers`: the rows, and by the exit status whether all were held."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import Site

from coverart.simulator.catalogue import Catalogue
from coverart.simulator.faults import Body, Rule, Status
from coverart.simulator.service import Simulator
from tests.browsers.chromium import Chromium, Page
from tests.support.nginx_server import ACCEL, NginxServer
from tests.support.running import Proxy
from tests.support.talk import LOCAL

PAGE = Path(__file__).with_name("page.html").read_bytes()
NOT_A_RELEASE = "00000000-0000-4000-8000-00000000dead"


class Pages(Resource):
    """Pages of another origin; what asks for anything else is noted."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.strayed: list[str] = []

    def render(self, request: Any) -> bytes:
        if request.path not in {b"/plain", b"/isolated"}:
            if request.path != b"/favicon.ico":
                self.strayed.append(request.path.decode("latin-1"))
            request.setResponseCode(204)
            return b""
        request.setHeader(b"content-type", b"text/html; charset=utf-8")
        if request.path == b"/isolated":
            request.setHeader(b"cross-origin-embedder-policy", b"require-corp")
            request.setHeader(b"cross-origin-opener-policy", b"same-origin")
        return PAGE


def pdf_with_script(script: str) -> bytes:
    """A PDF of one page that runs a script when it is opened."""
    script = script.replace("(", "\\(").replace(")", "\\)")
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R /OpenAction << /S /JavaScript /JS ({script}) >> >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] /Resources << >> >>",
    ]
    made, places = "%PDF-1.7\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(made))
        made += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    tail = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(made)}\n%%EOF\n"
    return (made + head + tail).encode()


@attrs.frozen(kw_only=True)
class Place:
    """Where everything is."""

    proxy: str
    pages: str
    catalogue: Catalogue

    def front(self, index: int) -> str:
        """A front of the archive."""
        return f"{self.proxy}/release/{self.catalogue.release(index).mbid}/front"


Row = tuple[str, Callable[[Page], Any], Callable[[Any], bool]]


def rows(at: Place) -> Iterator[Row]:
    """What a page does with a cover, and what it must see."""
    front = at.front(0)
    of_many = at.front(1)
    yield "img", lambda p: p.does(f"does.img('{front}-250')"), lambda v: v["width"] > 0
    yield (
        "img srcset",
        lambda p: p.does(f"does.srcset('{front}')"),
        lambda v: v["chosen"] == "-500" and v["width"] > 0,
    )
    yield (
        "canvas, read",
        lambda p: p.does(f"does.canvas('{front}-500')"),
        lambda v: v == {"url": "data:image/png;base64,", "drawn": True},
    )
    yield (
        "fetch",
        lambda p: p.does(f"does.fetch('{of_many}-250')"),
        lambda v: (
            v["status"] == 200
            and v["Content-Length"] == str(v["bytes"])
            and {"ETag", "Accept-Ranges", "X-Cache-Status", "Cache-Status", "X-Served-By"} <= {*v}
        ),
    )
    yield (
        "fetch of the first 100 bytes",
        lambda p: p.does(f"does.fetch('{of_many}-250', {{Range: 'bytes=0-99'}})"),
        lambda v: (
            (v["status"], v["bytes"]) == (206, 100) and v["Content-Range"].startswith("bytes 0-99/")
        ),
    )
    yield (
        "fetch of what follows",
        lambda p: p.does(f"does.fetch('{of_many}-250', {{Range: 'bytes=100-'}})"),
        lambda v: v["status"] == 206 and v["Content-Range"].startswith("bytes 100-"),
    )
    yield (
        "fetch with a condition, after a preflight",
        lambda p: p.does(
            f"does.fetch('{of_many}-250').then((told) => "
            f"does.fetch('{of_many}-250', {{'If-None-Match': told.ETag}}))"
        ),
        lambda v: v["status"] == 304 and "ETag" in v,
    )
    listing = f"{at.proxy}/release/{at.catalogue.release(0).mbid}/"
    yield (
        "fetch of a listing",
        lambda p: p.does(f"does.fetch('{listing}').then((told) => told.json.images.length)"),
        lambda v: v > 0,
    )


def pdf_rows(at: Place) -> Iterator[tuple[str, str]]:
    """How a page embeds a PDF."""
    for tag in ("object", "iframe", "embed"):
        yield tag, f"does.{tag}('{at.front(4)}')"


class Table:
    """The rows as they come."""

    def __init__(self) -> None:
        self.broken = 0

    def tell(self, page: str, what: str, seen: Any, held: bool) -> None:
        """One row."""
        self.broken += not held
        print(f"{page:9} {what:42} {'held' if held else 'BROKEN'}: {seen}", flush=True)

    def console(self, page: str, told: list[str], allowed: str = "") -> None:
        """What the browser said, which is nothing, or lines that have this."""
        wrong = [line for line in told if not allowed or allowed not in line]
        self.tell(page, "console", told or "nothing", not wrong)


def play(browser: Chromium, at: Place, sim: Simulator, pages: Pages) -> int:
    """In a thread: every row. :returns: how many were not held."""
    table = Table()
    for name in ("plain", "isolated"):
        # The first time by the app, then from the disk by nginx.
        for turn in ("", ", again"):
            page = browser.open(f"{at.pages}/{name}")
            seen = page.does("self.crossOriginIsolated")
            table.tell(name, "asks for COEP: require-corp", seen, seen == (name == "isolated"))
            for what, ask, is_right in rows(at):
                try:
                    seen = ask(page)
                    held = seen is not None and bool(is_right(seen))
                except (RuntimeError, KeyError) as error:
                    seen, held = error, False
                table.tell(name, what + turn, seen, held)
            table.console(name, page.console())
            page.close()
            for tag, embeds in pdf_rows(at):
                embed(browser.open(f"{at.pages}/{name}"), name, tag + turn, embeds, table)
    hostile(browser, at, sim, pages, table)
    errors(browser, at, sim, table)
    return table.broken


def embed(page: Page, name: str, tag: str, embeds: str, table: Table) -> None:
    """A page that embeds a PDF."""
    page.does(embeds)
    try:
        page.until(page.pages_of_pdf, "the PDF is shown", 10)
        table.tell(name, f"PDF by {tag}", "shown by the browser's viewer", True)
    except RuntimeError as error:
        table.tell(name, f"PDF by {tag}", error, False)
    table.console(name, page.console())
    page.close()


def hostile(browser: Chromium, at: Place, sim: Simulator, pages: Pages, table: Table) -> None:
    """A PDF with a script is shown; it leads the page nowhere and asks no server for anything."""
    to = f"{at.pages}/strayed"
    script = (
        f"try {{ app.launchURL('{to}-1', false); }} catch (e) {{}} "
        f"try {{ this.submitForm('{to}-2'); }} catch (e) {{}} "
        f"try {{ this.getURL('{to}-3', false); }} catch (e) {{}} "
        "app.alert('from the PDF');"
    )
    mbid = sim.catalogue.release(46).mbid
    rule = sim.faults.add(
        Rule(
            hop="node",
            path=f"*/mbid-{mbid}-*.pdf",
            does=Body(data=pdf_with_script(script), content_type="application/pdf"),
        )
    )
    page = browser.open(f"{at.pages}/plain")
    page.does(f"void does.object('{at.front(46)}')")
    said: list[str] = []
    # Until its dialog is closed, the viewer answers nothing.
    with contextlib.suppress(RuntimeError):
        page.until(page.has_dialog, "the viewer lets it alert", 10)
        said = page.dialogs()
    page.until(page.pages_of_pdf, "the PDF is shown")
    where = page.does("location.href")
    table.tell(
        "plain",
        "a PDF with a script",
        f"page at {where}, asked for elsewhere: {pages.strayed}, viewer's alerts: {said}",
        where == f"{at.pages}/plain" and not pages.strayed,
    )
    page.close()
    sim.faults.remove(rule)


def errors(browser: Chromium, at: Place, sim: Simulator, table: Table) -> None:
    """Errors can be read by scripts; the browser tells each status in its console by itself."""
    page = browser.open(f"{at.pages}/isolated")
    seen = page.does(f"does.fetch('{at.proxy}/release/{NOT_A_RELEASE}/front')")
    table.tell(
        "isolated", "fetch of a 404", seen, seen["status"] == 404 and "error" in seen["json"]
    )
    sim.faults.add(Rule(hop="*", does=Status(code=503, retry_after="7")))
    seen = page.does(f"does.fetch('{at.front(20)}')")
    table.tell(
        "isolated",
        "fetch of a 503",
        seen,
        seen["status"] == 503
        and seen["Retry-After"] == "7"
        and seen["Proxy-Status"].startswith("coverart; error=destination_unavailable; ")
        and seen["X-Request-ID"] == seen["json"]["request_id"],
    )
    sim.faults.clear()
    table.console("isolated", page.console(), "the server responded with a status of")
    page.close()


async def run(reactor: Any) -> None:
    """Start everything, play, end everything."""
    sim = Simulator(reactor, Catalogue(seed=11, releases=60), variants=8)
    await sim.start()
    pages = Pages()
    port = reactor.listenTCP(0, Site(pages), interface=LOCAL)
    with tempfile.TemporaryDirectory(prefix="coverart-browsers-") as name:
        folder = Path(name)
        proxy = await Proxy(folder / "cache", {**sim.environment(), **ACCEL}).start()
        nginx = await NginxServer(folder / "nginx", proxy.root, f"{LOCAL}:{proxy.port}").start()
        browser = Chromium(folder / "chromium")
        at = Place(
            proxy=nginx.url,
            pages=f"http://localhost:{port.getHost().port}",
            catalogue=sim.catalogue,
        )
        try:
            print(browser.call("Browser.getVersion")["product"])
            broken = await deferToThread(play, browser, at, sim, pages)
        finally:
            browser.close()
            nginx.kill()
            await proxy.stop()
            await sim.stop()
            await port.stopListening()
    if broken:
        raise SystemExit(1)


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
