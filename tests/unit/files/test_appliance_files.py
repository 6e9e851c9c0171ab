"""The appliance: docker/appliance.yml, docker/authority.sh and their page agree, and ask for few rights."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from coverart.service.settings import load

ROOT = Path(__file__).parents[3]
APPLIANCE = (ROOT / "docker" / "appliance.yml").read_text()
AUTHORITY = (ROOT / "docker" / "authority.sh").read_text()
PAGE = (ROOT / "docs" / "appliance.md").read_text()


def service(name: str) -> str:
    """What appliance.yml says of a service, without the comments."""
    match = re.search(rf"^  {name}:\n((?:    .*\n|\n)+)", APPLIANCE, re.MULTILINE)
    assert match is not None, name
    return re.sub(r"^ *#.*\n", "", match[1], flags=re.MULTILINE)


def names() -> list[str]:
    """The names that the authority is for."""
    match = re.search(r'^NAMES="(.*)"$', AUTHORITY, re.MULTILINE)
    assert match is not None
    return match[1].split()


class ApplianceTests(SynchronousTestCase):
    """What stands in several places is the same in each."""

    def test_names_are_the_archives(self) -> None:
        """The certificate is for the hosts that the proxy asks by default, and each list of the page has both."""
        settings = load({})
        asked = [urlsplit(url).hostname for url in (settings.upstream, settings.event_upstream)]
        self.assertEqual(names(), asked)
        for language in ("hosts", "dnsmasq", "unbound"):
            block = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
            assert block is not None, language
            for name in names():
                self.assertIn(name, block[1], language)

    def test_nginx_finds_the_certificate(self) -> None:
        """Nginx gets the folder of the certificate and nothing else of the authority's."""
        folder = "${COVER_ART_AUTHORITY_DIR:-/opt/cover-art-authority}"
        self.assertIn(f"      - {folder}:/authority\n", service("authority"))
        self.assertIn("certificate=$folder/nginx/${NAMES%% *}\n", AUTHORITY)
        self.assertIn(f"/authority/nginx/{names()[0]}.crt", service("authority"))
        mounted = re.search(rf"- {re.escape(folder)}(\S*):(\S+):ro\n", service("nginx"))
        assert mounted is not None
        self.assertEqual(mounted[1], "/nginx")
        self.assertIn(f"NGINX_TLS_CERTIFICATES: {mounted[2]}\n", service("nginx"))

    def test_nothing_privileged(self) -> None:
        """The authority has no network, and of root's rights only the one to give files away."""
        for word in ("docker.sock", "privileged: true", "network_mode: host", "777"):
            self.assertNotIn(word, APPLIANCE)
        self.assertEqual(re.findall("cap_add: (.*)", APPLIANCE), ["[CHOWN]"])
        for line in (
            "network_mode: none",
            "read_only: true",
            "cap_drop: [ALL]",
            'security_opt: ["no-new-privileges:true"]',
        ):
            self.assertIn(f"    {line}\n", service("authority"))

    def test_one_image_mode(self) -> None:
        """Nginx and the app have the same mode: by a name a client can't say a prefix."""
        mode = "      COVER_ART_IMAGE_MODE: ${COVER_ART_IMAGE_MODE:-redirect}\n"
        self.assertIn(mode, service("nginx"))
        self.assertIn(mode, service("app"))

    def test_decisions_are_asked_for(self) -> None:
        """Compose does not start until somebody said where http is served, and who knows the true archive."""
        for name in ("COVER_ART_PORT", "COVER_ART_RESOLVER"):
            self.assertRegex(APPLIANCE, rf"\$\{{{name}:\?")
            self.assertRegex(PAGE, rf"(?m)^{name}=")
