"""The options of twistd, and what is made of the hosts that were named."""

import os

from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from coverart.errors import BadUpstream
from coverart.service.listening import listening_at
from coverart.service.settings import ConfigError, Settings, load, variables
from coverart.service.wiring import rules_for
from coverart.tap import Options, makeService
from tests.support.doubles import folder


class OptionsTests(SynchronousTestCase):
    """One option for each setting."""

    def setUp(self) -> None:
        self.patch(os, "environ", {})
        here = os.getcwd()
        os.chdir(folder(self))
        self.addCleanup(os.chdir, here)

    def settings(self, *arguments: str) -> Settings:
        """What a command line means."""
        options = Options()
        options.parseOptions(list(arguments))
        return options.settings()

    def test_every_setting(self) -> None:
        """Every variable has an option, and the help names the variable."""
        text = str(Options())
        for variable in variables():
            name = variable.removeprefix("COVER_ART_").lower().replace("_", "-")
            self.assertIn(f"--{name}=", text)
            self.assertIn(variable, "".join(text.split()))

    def test_over_the_environment(self) -> None:
        """What is given wins over the environment; what is not comes from there."""
        os.environ.update(COVER_ART_CACHE_MAX_SIZE="7", COVER_ART_ALIAS_TTL="9")
        settings = self.settings("--cache-max-size", "8", "--listen", "tcp:1 tcp:2")
        self.assertEqual((settings.cache_max_size, settings.alias_ttl), (8, 9))
        self.assertEqual(settings.listen, ("tcp:1", "tcp:2"))

    def test_env_file(self) -> None:
        """A .env file in the working directory is read."""
        with open(".env", "w", encoding="utf-8") as file:
            file.write("COVER_ART_CACHE_MAX_SIZE=6\n")
        self.assertEqual(self.settings().cache_max_size, 6)

    def test_wrong(self) -> None:
        """A wrong value is named by its variable, whichever way it came; twistd ends with it."""
        error = self.assertRaises(ConfigError, self.settings, "--cache-max-size", "much")
        self.assertIn("COVER_ART_CACHE_MAX_SIZE='much'", str(error))
        options = Options()
        options.parseOptions(["--image-mode", "both"])
        end = self.assertRaises(SystemExit, makeService, options)
        self.assertIn("COVER_ART_IMAGE_MODE='both'", str(end.code))
        self.assertEqual(len(str(end.code).splitlines()), 1)

    def test_unknown(self) -> None:
        """An option that is none is refused."""
        self.assertRaises(usage.UsageError, Options().parseOptions, ["--cache-size", "5"])


class ListenTests(SynchronousTestCase):
    """Where to listen."""

    def test_no_endpoint(self) -> None:
        """What is no endpoint is refused by name, a bare number too."""
        for text in ("8080", "tcp", "tcp:http", ":8080", "TCP:80", "81"):
            settings = load({"COVER_ART_LISTEN": f"unix:/run/x {text}"})
            error = self.assertRaises(ConfigError, listening_at, settings, None)
            self.assertTrue(str(error).startswith(f"COVER_ART_LISTEN={text!r}: "), error)
            self.assertEqual(len(str(error).splitlines()), 1)


class RulesTests(SynchronousTestCase):
    """Which hosts the settings allow."""

    def test_default(self) -> None:
        """The archive's hosts by https; nothing is trusted beyond that."""
        rules = rules_for(load({}))
        for url in (
            "https://coverartarchive.org/x",
            "https://eventartarchive.org/x",
            "https://archive.org/x",
            "https://ia800.us.archive.org/x",
        ):
            hop = rules.check(url)
            self.assertFalse(rules.trusts(hop.host, hop.port), url)
        for url in ("http://coverartarchive.org/x", "https://x.coverartarchive.org/x"):
            self.assertRaises(BadUpstream, rules.check, url)

    def test_hop_1(self) -> None:
        """The host of hop 1 that the operator named may be asked as it was named, by no other way."""
        for base, asked, other in (
            ("http://127.0.0.1:8191", "http://127.0.0.1:8191/x", "http://127.0.0.1:8192/x"),
            ("http://[::1]:8191/base", "http://[::1]:8191/x", "http://[::1]/x"),
            ("http://Mirror", "http://mirror:80/x", "https://mirror/x"),
            ("https://mirror:8443", "https://mirror:8443/x", "https://mirror/x"),
        ):
            rules = rules_for(load({"COVER_ART_UPSTREAM": base}))
            hop = rules.check(asked)
            self.assertTrue(rules.trusts(hop.host, hop.port), base)
            self.assertRaises(BadUpstream, rules.check, other)

    def test_https_without_a_port(self) -> None:
        """A base URL like the archive's own is allowed; its addresses must be public all the same."""
        rules = rules_for(load({"COVER_ART_UPSTREAM": "https://mirror.example"}))
        self.assertFalse(rules.trusts(rules.check("https://mirror.example/x").host, 443))
