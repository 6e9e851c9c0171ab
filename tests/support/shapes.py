"""Paths as clients and attackers write them: every shape that the archive answers, and its neighbours."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from urllib.parse import unquote

from coverart.archive.paths import parse, spell
from coverart.errors import Malformed, NotInArchive
from coverart.model import SIZES, ImageRequest
from coverart.simulator.answers import Answer, Places, redirect_service
from coverart.simulator.catalogue import Catalogue

PLACES = Places(
    release="http://caa",
    event="http://eaa",
    archive="http://ia",
    node1="http://n1",
    node2="http://n2",
)
_SIZES = (
    "",
    "",
    "",
    *(f"-{size}" for size in SIZES),
    "-1000",
    "-300",
    "-large",
    "-2500",
    "-250px",
    "-",
    "-25",
)
_SIZES_TWICE = (*_SIZES, "-250-500", "-500-x", "-0250", "-12000", "--250", "\u2010250")
_EXTENSIONS = (
    "",
    "",
    "",
    ".jpg",
    ".JPG",
    ".png",
    ".webp",
    ".",
    "..",
    ".jpg.jpg",
    ".jpg-250",
    ".jpg~",
)
_FURTHER = ("", "", "", "", "/", "//", "/250", "/x/y", "/.", "/./", "/..", "/../", "/../../..")
_FURTHER_STILL = (
    *_FURTHER * 2,
    "/../../../..",
    "/../../../../x",
    "/a/../..",
    "/%00",
    "/%zz",
    "/\xff",
)
_ODD = (
    "label",
    "Release",
    "releases",
    "release;v=1",
    ".",
    "..",
    "",
    "metrics",
    "admin",
    "release ",
)
_ODDITIES = (
    "%00",
    "%0a",
    "%0d%0a",
    "%2f",
    "%252f",
    "%c0%ae",
    "%2e",
    "\xff",
    "%",
    "%g0",
    ";v=1",
    "#",
    "+",
)


def shapes(catalogue: Catalogue, seed: int) -> Iterator[str]:
    """Paths without end, the same for a seed; each character stands for a byte on the wire."""
    dice = random.Random(seed)
    releases, events = list(catalogue.walk("release")), list(catalogue.walk("event"))
    known = {
        "release": [*releases, *(catalogue.merged(n).mbid for n in range(catalogue.merges))],
        "release-group": list(catalogue.walk("release-group")),
        "event": events,
    }
    while True:
        entity = dice.choice(("release", "release", "release-group", "event"))
        mbid = dice.choice(known[entity])
        item = catalogue.find("event" if entity == "event" else "release", mbid)
        if dice.random() < 0.1:
            mbid = dice.choice(
                (
                    *(
                        mbid.upper(),
                        mbid[:-1],
                        f"{mbid}0",
                        mbid.replace("-", ""),
                        "",
                        ".",
                        "..",
                        f"{mbid}\n",
                    ),
                    *(f"{mbid};", releases[0], events[0], "00000000-0000-4000-8000-000000000000"),
                )
            )
        ids = [str(image.id) for image in item.images] if item else []
        name = dice.choice((*["front"] * 6, "back", *ids * 2, "0", "7", "9" * 19, "9" * 40, "x"))
        name = dice.choice(("", "", "", "", "0", "00")) + name if name.isdecimal() else name
        name += dice.choice(("", "", "", "", "al", "x", " ", "%")) if dice.random() < 0.3 else ""
        name += dice.choice(_SIZES_TWICE) + dice.choice(_EXTENSIONS)
        if dice.random() < 0.1:
            name = dice.choice(("", "", ".", "..", "Front", "-250", "index.json", "\u0661", "fron"))
        if dice.random() < 0.05:
            entity = dice.choice(_ODD)
        between = [
            dice.choice(("/", "/", "/", "/", "/", "//", "///", "/./", "//./")) for _ in range(3)
        ]
        between[0] = dice.choice(("/", "/", "/", "//", "///"))
        path = (
            between[0]
            + entity
            + between[1]
            + mbid
            + between[2]
            + name
            + dice.choice(_FURTHER_STILL)
        )
        path = "".join(chr(byte) for byte in path.encode("utf-8", "surrogatepass"))
        if dice.random() < 0.25:
            path = _encoded(path, dice)
        if dice.random() < 0.1:
            at = dice.randrange(len(path) + 1)
            path = path[:at] + dice.choice(_ODDITIES) + path[at:]
        yield re.sub("[\x00-\x20\x7f-\xff?]", lambda odd: f"%{ord(odd[0]):02X}", path)


def _encoded(path: str, dice: random.Random) -> str:
    """Some of the characters behind the first as percent signs and digits."""
    share = dice.choice((0.03, 0.2, 1.0))
    form = dice.choice((*["%{:02x}"] * 4, *["%{:02X}"] * 4, "%25{:02x}"))
    rest = [form.format(ord(each)) if dice.random() < share else each for each in path[1:]]
    return path[0] + "".join(rest)


def decision(catalogue: Catalogue, places: Places, path: str) -> Answer:
    """What hop 1 says on the host of releases, or on that of events where that one has no such path."""
    answer = redirect_service(catalogue, places, "release", "GET", path)
    if answer.status == 400:
        return redirect_service(catalogue, places, "event", "GET", path)
    return answer


def judge(catalogue: Catalogue, path: str) -> int:
    """
    Hold request_path to hop 1 on one path; gives the status of hop 1.

    :raises AssertionError: they differ.
    """
    archives = decision(catalogue, PLACES, path)
    try:
        thing = parse(path.encode("latin-1"))
    except Malformed:
        # A group is looked for before its name is looked at: a 404 for none, where we say 400.
        unknown_group = archives.status == 404 and "/release-group" in unquote(path)
        assert archives.status in {400, 200, 301} or unknown_group, (path, archives.status)
        return archives.status
    except NotInArchive:
        # What this takes and the archive does not: an MBID in upper case.
        assert archives.status == 404 or re.search("[A-F]", unquote(path)), (path, archives.status)
        return archives.status
    canonical = decision(catalogue, PLACES, spell(thing))
    if archives.status == 400:
        mbid = thing.alias.mbid if isinstance(thing, ImageRequest) else thing.mbid
        assert mbid not in unquote(path), path
        assert mbid.upper() in unquote(path).upper(), path
        return 400
    assert archives.status == canonical.status, (path, archives.status, canonical.status)
    assert archives.header(b"Location") == canonical.header(b"Location"), path
    return archives.status
