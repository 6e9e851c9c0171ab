"""The pages that people read: their links lead somewhere, and they say each thing once, of all there is."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from coverart.metrics import Metrics
from coverart.service.settings import load, variables

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
LONGEST_README = 150
OF_OTHERS = {"COVER_ART_ARCHIVE_BASE_URL"}
"""Variables that a page tells of and another program reads: graphbrainz."""

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_SETTING = re.compile(r"\b(?:COVER_ART|NGINX|REDIS|CADDY|COMPOSE)_[A-Z_]+\b")
_METRIC = re.compile(r"\bcoverart_[a-z_]+\b")


def text(*names: str) -> str:
    """Some files of the project, one after the other."""
    return "".join((ROOT / name).read_text() for name in names)


def sources() -> str:
    """Every module of the package but the simulator's."""
    package = ROOT / "coverart"
    return "".join(
        path.read_text()
        for path in sorted(package.rglob("*.py"))
        if not path.is_relative_to(package / "simulator")
    )


def texts() -> list[str]:
    """Every text that stands in the package, with those that Python joins as one; … for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(sources())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"\{[^}]*\}", "…", node.value))
        elif isinstance(node, ast.JoinedStr):
            parts = (each.value if isinstance(each, ast.Constant) else "…" for each in node.values)
            found.append("".join(map(str, parts)))
    return found


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What can stand behind the # of a link to this page: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(*headings: str) -> Iterator[list[str]]:
    """The code in the first cell of each row, of the tables whose first heading is one of these; of all if none is given."""
    for page in PAGES:
        heading = ""
        before = ""
        for line in prose(page).splitlines():
            if re.fullmatch(r"\|(-+\|)+", line):
                heading = before.split("|")[1].strip()
            elif line.startswith("|") and heading and (heading in headings or not headings):
                yield _CODE.findall(line.split("|")[1])
            if not line.startswith("|"):
                heading = ""
            before = line


def defined(*headings: str) -> list[str]:
    """What these tables define, with repetitions."""
    return sorted(name for row in rows(*headings) for name in row)


def settings() -> set[str]:
    """Every variable that the app, nginx' start and compose read."""
    stacks = (
        "docker-compose.yml",
        *(f"docker/{name}.yml" for name in ("tls", "caddy", "appliance")),
    )
    read = re.findall(r"\$\{(\w+):[-?]", text(*stacks))
    start = re.findall(r"\$\{((?:NGINX|COVER_ART)_\w+):-", text("nginx/start.sh"))
    listed = re.findall(r"^#([A-Z_]+)=", text(".env"), re.MULTILINE)
    return {*variables(), *read, *start, *listed}


def metrics() -> set[str]:
    """Every metric of /metrics, as Prometheus shows its name."""
    counted = set(re.findall(r"^# TYPE (\w+)", Metrics().expose().decode(), re.MULTILINE))
    return counted | set(re.findall(r'GaugeMetricFamily\(\s*"(\w+)"', sources()))


def routes() -> set[str]:
    """Every path of openapi.json; those of /admin are one each, for any path of the archive."""
    document = json.loads(text("coverart/web/openapi.json"))
    paths = {path.replace("{again}", "{mbid}") for path in document["paths"]}
    return {re.sub(r"^(/admin/\w+)/.*", r"\1/{path}", path) for path in paths}


def headers() -> set[str]:
    """Every header of an answer, in lower case: of openapi.json, the app, nginx and Caddy."""
    found: set[str] = set()

    def look(part: object) -> None:
        if isinstance(part, dict):
            if "description" in part and isinstance(part.get("headers"), dict):
                found.update(part["headers"])
            for each in part.values():
                look(each)

    look(json.loads(text("coverart/web/openapi.json")))
    found.update(re.findall(r'setHeader\(\s*b"([\w-]+)"', sources()))
    conf = text("nginx/site.conf", "nginx/hit-headers.conf", "nginx/file-headers.conf")
    conf += text("nginx/start.sh")
    found.update(re.findall(r"add_header ([\w-]+)", conf))
    found.update(re.findall(r"^\t*header ([\w-]+) ", text("docker/Caddyfile"), re.MULTILINE))
    return {name.lower() for name in found}


class LinkTests(SynchronousTestCase):
    """From page to page."""

    def test_links_lead_somewhere(self) -> None:
        """Each link to a file or a heading of this project finds it."""
        broken = []
        for page in PAGES:
            for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
                if re.match("https?:", target):
                    continue
                name, _, anchor = target.partition("#")
                file = (page.parent / name).resolve() if name else page
                if not file.exists() or (anchor and anchor not in anchors(file)):
                    broken.append(f"{page.name}: {target}")
        self.assertEqual(broken, [])

    def test_files_that_are_named_exist(self) -> None:
        """A path of this project in a page is the path of something."""
        missing = []
        for page in PAGES:
            for code in _CODE.findall(prose(page)):
                first = code.split()[0]
                ours = re.match(
                    r"(coverart|tests|bench|docker|docs|nginx|newsfragments|\.ci)/[\w./-]*$", first
                )
                if ours and not (ROOT / first).exists():
                    missing.append(f"{page.name}: {first}")
        self.assertEqual(missing, [])


class DefinitionTests(SynchronousTestCase):
    """What there is stands in one table, once; what stands there exists."""

    def test_settings(self) -> None:
        """Every variable, in the tables of settings.md."""
        self.assertEqual(defined("variable"), sorted(settings()))

    def test_defaults(self) -> None:
        """A default that settings.md writes as code is the one that an unset variable has."""
        page = prose(ROOT / "docs" / "settings.md")
        told = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)`", page, re.MULTILINE))
        # Where that folder is not there, another is the default.
        del told["COVER_ART_CACHE_DIR"]
        ours = {name: default for name, default in told.items() if name in variables()}
        self.assertGreater(len(ours), 15)
        for name, default in ours.items():
            self.assertEqual(load({name: default}), load({}), name)

    def test_routes(self) -> None:
        """Every route, in the tables of api.md."""
        self.assertEqual(defined("route"), sorted(routes()))

    def test_headers(self) -> None:
        """Every header that an answer may have."""
        told = [name.lower() for name in defined("header")]
        self.assertEqual(sorted(set(told)), sorted(told))
        self.assertEqual(headers() - set(told), set())
        # Set in another way than those that are found by the pattern: its name stands there all the same.
        written = set(re.findall(r'b"([a-z]+(?:-[a-z]+)*)"', sources()))
        self.assertEqual(set(told) - headers() - written, set())

    def test_metrics(self) -> None:
        """Every metric; its labels may follow its name."""
        told = [name.partition("{")[0] for name in defined("metric")]
        self.assertEqual(sorted(told), sorted(metrics()))

    def test_no_other_table_defines_them(self) -> None:
        """No table beside these begins a row with one of them, alone in its cell."""
        told = [re.sub(r"^(coverart_\w+)\{.*", r"\1", name) for name in defined()]
        for name in (*settings(), *routes(), *metrics()):
            self.assertEqual(told.count(name), 1, name)

    def test_every_name_exists(self) -> None:
        """No page speaks of a setting or a metric that is not there."""
        for page in PAGES:
            whole = page.read_text()
            self.assertEqual(
                set(_SETTING.findall(whole)) - settings(),
                OF_OTHERS & set(_SETTING.findall(whole)),
                page.name,
            )
            told = {re.sub("_(bucket|sum|count)$", "", name) for name in _METRIC.findall(whole)}
            self.assertEqual(told - metrics(), set(), page.name)


class LogTests(SynchronousTestCase):
    """What operations.md says that the log says."""

    def test_lines_exist(self) -> None:
        """Each line that is told of a fault is one that the package can write; … stands for what differs."""
        page = prose(ROOT / "docs" / "operations.md")
        tables = page[page.index("## When something fails") : page.index("## Limits")]
        cells = [line.split("|")[-2] for line in tables.splitlines() if line.startswith("|")]
        told = {line for cell in cells for line in _CODE.findall(cell)}
        self.assertGreater(len(told), 15)
        written = texts()
        missing = []
        for line in sorted(told):
            pattern = ".*".join(re.escape(part) for part in line.strip("… ").split("…"))
            if not any(re.search(pattern, each, re.DOTALL) for each in written):
                missing.append(line)
        self.assertEqual(missing, [])


class ReadmeTests(SynchronousTestCase):
    """What is read first."""

    def test_five_minutes(self) -> None:
        """It is short."""
        self.assertLessEqual(len(text("README.md").splitlines()), LONGEST_README)

    def test_the_test_command_is_marked(self) -> None:
        """.ci/run finds the command that passes the tests behind its mark."""
        marked = re.search(r"<!-- test command -->\n```sh\n(.*)\n```\n", text("README.md"))
        assert marked is not None
        self.assertIn("twisted.trial tests.unit", marked[1])
        self.assertIn("pytest", marked[1])

    def test_every_page_is_linked(self) -> None:
        """The README leads to each page of docs/."""
        linked = set(re.findall(r"\]\((docs/\w+\.md)\)", text("README.md")))
        self.assertEqual(linked, {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")})
