"""The files that a server runs from agree with the settings that there are."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from coverart.service.settings import variables

ROOT = Path(__file__).parents[3]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
ENV = (ROOT / ".env").read_text()
CONSTANT = {"COVER_ART_CACHE_DIR": "/opt/cover-art-cache", "COVER_ART_HIT_LOG": "/var/log/"}
"""The same in every container."""


class SettingsTests(SynchronousTestCase):
    """docker-compose.yml and .env against coverart/service/settings.py."""

    def test_compose_passes_every_setting(self) -> None:
        """Each setting reaches the app from .env or the shell, and an unset one stays unset."""
        app = COMPOSE[COMPOSE.index("\n  app:") : COMPOSE.index("\n  redis:")]
        passed = dict(re.findall(r"^ {6}(COVER_ART_\w+): (.*)$", app, re.MULTILINE))
        self.assertEqual(set(passed), set(variables()))
        for name, value in passed.items():
            if name in CONSTANT:
                self.assertIn(CONSTANT[name], value)
            else:
                self.assertRegex(value, rf"^\$\{{{name}:-[^}}]*\}}$")

    def test_env_lists_every_setting(self) -> None:
        """Each setting is in .env, commented out: a clone that nobody touched has the defaults."""
        listed = re.findall(r"^#([A-Z_]+)=", ENV, re.MULTILINE)
        self.assertEqual(sorted(listed), sorted(set(listed)))
        self.assertEqual(set(variables()) - set(listed), set())
        used = set(re.findall(r"\$\{([A-Z_]+):-", COMPOSE))
        self.assertEqual(used - set(listed), set())
        for line in ENV.splitlines():
            self.assertTrue(not line or line.startswith("#"), line)

    def test_health_checks_have_no_spaces(self) -> None:
        """Some engines split a health check's arguments at spaces."""
        checks = re.findall(r'test: \[("CMD".*)\]', COMPOSE)
        self.assertEqual(len(checks), 3)
        for check in checks:
            for argument in re.findall(r'"([^"]*)"', check):
                self.assertNotIn(" ", argument)

    def test_digests(self) -> None:
        """Each image that is named by its tag has a digest, for those who want that alone."""
        docker = ROOT / "docker"
        named = {
            *re.findall(r"^ +image: (.*)$", COMPOSE, re.MULTILINE),
            *re.findall(r"^ +image: (.*)$", (docker / "tls.yml").read_text(), re.MULTILINE),
            *re.findall(r"^ +image: (.*)$", (docker / "caddy.yml").read_text(), re.MULTILINE),
            *re.findall(
                r"^ARG PYTHON_IMAGE=(.*)$", (docker / "Dockerfile").read_text(), re.MULTILINE
            ),
        } - {"coverart:latest"}
        pinned = "".join(
            (docker / name).read_text()
            for name in ("digests.yml", "tls-digests.yml", "caddy-digests.yml")
        )
        digests = re.findall(
            r"IMAGE: (\S+)@sha256:[0-9a-f]{64}$", pinned, re.MULTILINE | re.IGNORECASE
        )
        self.assertEqual(named, set(digests))

    def test_nothing_privileged(self) -> None:
        """No service has more rights than it needs, and only nginx has a port on the server."""
        for word in ("privileged: true", "docker.sock", "network_mode: host", "777"):
            self.assertNotIn(word, COMPOSE)
        # The one that gives the folder away, once and without a network.
        folder = COMPOSE[COMPOSE.index("\n  folder:") : COMPOSE.index("\n  nginx:")]
        self.assertEqual(re.findall("cap_add: .*", COMPOSE), ["cap_add: [CHOWN]"])
        for line in ("cap_add: [CHOWN]", "network_mode: none", 'restart: "no"'):
            self.assertIn(line, folder)
        self.assertEqual(COMPOSE.count("ports:"), 1)
        for line in ("read_only: true", "cap_drop: [ALL]", '"no-new-privileges:true"'):
            self.assertIn(line, COMPOSE)
