"""The clients, how each is led to the proxy, and what is expected."""

from __future__ import annotations

from typing import Literal

import attrs

from tests.clients.namespace import PROXY
from tests.clients.places import NPM, PYPI

Brought = Literal["PyPI", "npm", "Debian"]
Mode = Literal["serve", "redirect"]
SETTING_BASE = f"http://{PROXY}:8000"
"""Where clients with a setting are sent: a port that nobody has by default."""


@attrs.frozen(kw_only=True)
class Row:
    """
    One client, led to the proxy in one way.

    :ivar led: how it gets to the proxy, in the words of the table.
    :ivar base: its base URL; clients with the host name built in have the archive's own.
    :ivar modes: the image modes in which the proxy's unprefixed paths are tried.
    :ivar fails_in: modes in which it is known to fail: that it still does is expected too.
    :ivar package: whose version is told, if it is not the client's own name.
    :ivar overlay: it runs on Debian's libraries, in the overlay.
    """

    client: str
    brought: Brought
    program: str
    arguments: tuple[str, ...] = ()
    led: str
    base: str = "https://coverartarchive.org"
    environment: dict[str, str] = attrs.field(factory=dict)
    modes: tuple[Mode, ...] = ("serve", "redirect")
    fails_in: tuple[Mode, ...] = ()
    package: str = ""
    overlay: bool = False

    @property
    def kinds(self) -> set[str]:
        """What has to be installed for it."""
        return {self.brought, "Debian"} if self.overlay else {self.brought}

    def known_version(self) -> str:
        """The version that is installed, where `places` pins it."""
        return {"PyPI": PYPI, "npm": NPM}.get(self.brought, {}).get(self.client, "")


HTTP = "http://coverartarchive.org"
ROWS = (
    Row(
        client="musicbrainzngs",
        brought="PyPI",
        program="ask_musicbrainzngs.py",
        arguments=("set",),
        led="set_caa_hostname()",
        base=SETTING_BASE,
    ),
    Row(
        client="musicbrainzngs",
        brought="PyPI",
        program="ask_musicbrainzngs.py",
        led="DNS, https",
    ),
    Row(
        client="mbzero",
        brought="PyPI",
        program="ask_mbzero.py",
        arguments=("set",),
        led="set_url()",
        base=SETTING_BASE,
    ),
    Row(
        client="mbzero",
        brought="PyPI",
        program="ask_mbzero.py",
        arguments=("set",),
        led="set_url(…/serve)",
        base=f"{SETTING_BASE}/serve",
    ),
    Row(
        client="mbzero",
        brought="PyPI",
        program="ask_mbzero.py",
        arguments=("set",),
        led="set_url(…/redirect)",
        base=f"{SETTING_BASE}/redirect",
    ),
    Row(client="mbzero", brought="PyPI", program="ask_mbzero.py", led="DNS, https"),
    Row(client="beets", brought="PyPI", program="ask_beets.py", led="DNS, https"),
    Row(client="coverart-cli", brought="PyPI", program="ask_coverart_cli.py", led="DNS, https"),
    Row(
        client="musicbrainz-api",
        brought="npm",
        program="ask_musicbrainz_api.mjs",
        led="DNS, https",
        fails_in=("serve",),
    ),
    Row(
        client="graphbrainz",
        brought="npm",
        program="ask_graphbrainz.mjs",
        led="COVER_ART_ARCHIVE_BASE_URL",
        base=f"{SETTING_BASE}/redirect/",
        environment={"COVER_ART_ARCHIVE_BASE_URL": f"{SETTING_BASE}/redirect/"},
    ),
    Row(
        client="graphbrainz",
        brought="npm",
        program="ask_graphbrainz.mjs",
        led="DNS, http",
        base=HTTP,
        fails_in=("serve",),
    ),
    Row(client="coverart", brought="npm", program="ask_coverart.mjs", led="DNS, http", base=HTTP),
    Row(
        client="cover-art-archive",
        brought="npm",
        program="ask_cover_art_archive.mjs",
        led="DNS, https",
    ),
    Row(client="picard", brought="PyPI", program="ask_picard.py", led="DNS, https", overlay=True),
    Row(
        client="Quod Libet",
        brought="Debian",
        package="quodlibet",
        program="ask_quodlibet.py",
        led="DNS, https",
        overlay=True,
    ),
    Row(
        client="Rhythmbox",
        brought="Debian",
        package="rhythmbox",
        program="ask_rhythmbox.py",
        led="DNS, https",
        overlay=True,
    ),
    Row(
        client="libcoverart",
        brought="Debian",
        package="libcoverart1",
        program="ask_libcoverart.py",
        led="DNS, http",
        base=HTTP,
        overlay=True,
    ),
)
