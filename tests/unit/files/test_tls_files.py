"""What TLS is set up with: its files agree with each other, and ask for no more rights than they need."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from coverart.service.settings import variables

DOCKER = Path(__file__).parents[3] / "docker"
TLS = (DOCKER / "tls.yml").read_text()
CADDY = (DOCKER / "caddy.yml").read_text()
CADDYFILE = (DOCKER / "Caddyfile").read_text()
CERTIFICATES = (DOCKER / "certificates.sh").read_text()
PAGE = (DOCKER.parent / "docs" / "settings.md").read_text()
START = (DOCKER.parent / "nginx" / "start.sh").read_text()


RIGHTS = (
    'user: "101:101"',
    "read_only: true",
    "cap_drop: [ALL]",
    'security_opt: ["no-new-privileges:true"]',
)


def service(name: str, file: str = CADDY) -> str:
    """What a file says of a service, without the comments."""
    match = re.search(rf"^  {name}:\n((?:    .*\n|\n)+)", file, re.MULTILINE)
    assert match is not None, name
    return re.sub(r"^ *#.*\n", "", match[1], flags=re.MULTILINE)


class TlsTests(SynchronousTestCase):
    """docker/tls.yml against nginx/start.sh, docker/certificates.sh and the page that describes them."""

    def test_nothing_privileged(self) -> None:
        """Certbot is an ordinary user without rights; it reaches nginx by files alone."""
        for word in ("docker.sock", "privileged: true", "network_mode", "pid:", "777", "cap_add"):
            self.assertNotIn(word, TLS)
        for line in RIGHTS:
            self.assertIn(f"    {line}\n", service("certificates", TLS))
        self.assertNotIn("ports:", service("certificates", TLS))

    def test_the_two_agree(self) -> None:
        """Nginx looks for certificates and answers where certbot puts them; the ports are those it listens on."""
        nginx = dict(re.findall(r"^ {6}(\w+): (.*)$", service("nginx", TLS), re.MULTILINE))
        certbot = dict(
            re.findall(r"^ {6}(ACME_\w+): (.*)$", service("certificates", TLS), re.MULTILINE)
        )
        self.assertEqual(nginx["NGINX_TLS_CERTIFICATES"], certbot["ACME_DIR"])
        self.assertEqual(nginx["NGINX_ACME_CHALLENGES"], certbot["ACME_DIR"] + "/challenges")
        self.assertIn('--webroot-path "$ACME_DIR/challenges"', CERTIFICATES)
        self.assertEqual(set(certbot), set(re.findall(r"ACME_[A-Z]+", CERTIFICATES)))
        for name in nginx:
            if name.startswith("NGINX_"):
                self.assertIn(f"{name}=${{{name}:-", START)
        ports = re.findall(r'- "(\d+):(\d+)"', service("nginx", TLS))
        redirect = nginx["NGINX_REDIRECT_LISTEN"].strip('"')
        self.assertEqual(ports, [("80", redirect), ("443", "8443")])
        self.assertIn("NGINX_TLS_LISTEN=${NGINX_TLS_LISTEN:-8443}", START)
        folder = "${COVER_ART_TLS_DIR:-/opt/cover-art-tls}:/tls"
        self.assertIn(f"- {folder}:ro\n", service("nginx", TLS))
        self.assertIn(f"- {folder}\n", service("certificates", TLS))

    def test_plain_port_is_a_decision(self) -> None:
        """Compose does not start until somebody said where nginx' plain port is to be."""
        for file in (TLS, CADDY):
            self.assertRegex(
                service("nginx", file), r"\$\{COVER_ART_PORT:\?.*127\.0\.0\.1:8080.*\}"
            )

    def test_operators_are_shut_out(self) -> None:
        """Over TLS nobody is an operator: where an engine hides addresses, everybody looks near."""
        self.assertIn("NGINX_TLS_OPERATORS: none\n", service("nginx", TLS))

    def test_page_lists_every_variable(self) -> None:
        """What can be set for TLS is in docs/settings.md, and is none of the app's own names."""
        used = set(re.findall(r"\$\{(\w+):[-?]", TLS + CADDY))
        for name in used:
            self.assertIn(f"`{name}", PAGE)
        self.assertEqual(used & set(variables()), set())


class CaddyTests(SynchronousTestCase):
    """docker/caddy.yml against docker/Caddyfile."""

    def test_nothing_privileged(self) -> None:
        """Caddy is an ordinary user without rights; what its binary needs to start is all it has."""
        for word in ("docker.sock", "privileged: true", "network_mode", "pid:", "777"):
            self.assertNotIn(word, CADDY)
        self.assertEqual(re.findall(r"cap_add: (.*)", CADDY), ["[NET_BIND_SERVICE]"])
        caddy = service("caddy")
        for line in RIGHTS:
            self.assertIn(f"    {line}\n", caddy)

    def test_caddyfile_has_what_it_asks_for(self) -> None:
        """Each variable in the Caddyfile is passed to Caddy, and each that is passed is known."""
        asked = set(re.findall(r"\{\$(\w+)", CADDYFILE))
        passed = set(re.findall(r"^ {6}([A-Z_]+): ", service("caddy"), re.MULTILINE))
        self.assertEqual(passed, asked | {"XDG_DATA_HOME", "XDG_CONFIG_HOME"})

    def test_caddy_finds_nginx(self) -> None:
        """Caddy asks the service nginx, in a network of the two, at the port it listens on."""
        self.assertEqual(re.findall(r"reverse_proxy (\S+)", CADDYFILE), ["nginx:8080"])
        self.assertIn("NGINX_LISTEN=${NGINX_LISTEN:-8080}", START)
        for name in ("caddy", "nginx"):
            self.assertIn("      front:\n", service(name))
        # The app keeps to the networks of docker-compose.yml.
        self.assertNotIn("\n  app:", CADDY)

    def test_one_address_is_trusted(self) -> None:
        """What nginx believes comes from the address that Caddy has, not from a network."""
        address = re.search(r"ipv4_address: (\S+)", service("caddy"))
        trusted = re.search(r"NGINX_TRUSTED_PROXIES: (\S+)", service("nginx"))
        assert address is not None
        assert trusted is not None
        self.assertEqual(trusted[1], address[1])
        self.assertNotIn("/", trusted[1])
        self.assertNotIn("trusted_proxies", CADDYFILE)

    def test_no_port_of_nginx(self) -> None:
        """Caddy alone has ports for the world."""
        self.assertNotIn("ports:", service("nginx"))

    def test_what_is_shut(self) -> None:
        """Caddy closes the doors that nginx closes by the client's address."""
        nginx = (DOCKER.parent / "nginx" / "nginx.conf").read_text()
        forbidden = re.search(r"\^\[01\] \[01\] /\(\?:(.*)\)\"", nginx)
        operators = re.search(r"@operators path (.*)", CADDYFILE)
        assert forbidden is not None
        assert operators is not None
        for path in forbidden[1].split("|"):
            self.assertIn("/" + path.rstrip("/"), operators[1].split())
            self.assertIn("/" + path.rstrip("/") + "/*", operators[1].split())
