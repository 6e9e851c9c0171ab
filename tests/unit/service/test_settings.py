"""Settings: every default, every limit, and the one line that refuses a wrong value."""

import pathlib
import re
from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.model import MEGABYTE
from coverart.service.settings import (
    PREFIX,
    PROJECT_PAGE,
    SHARED_DIR,
    ConfigError,
    Settings,
    load,
    read_environment,
    variables,
)
from tests.support.doubles import folder
from tests.support.strategies import examples


def setting(name: str, text: str) -> Settings:
    """The settings with one variable set."""
    return load({PREFIX + name: text})


class DefaultTests(SynchronousTestCase):
    """Nothing set."""

    def test_contract(self) -> None:
        """Every default is the one of the contract."""
        settings = load({})
        for name, expected in {
            "cache_dir": None,
            "cache_max_size": 100,
            "cache_clean_to": None,
            "cache_cleanup_interval": 300,
            "cache_eviction": "oldest",
            "listen": ("tcp:8080",),
            "processes": 1,
            "upstream": "https://coverartarchive.org",
            "event_upstream": "https://eventartarchive.org",
            "allowed_hosts": ("archive.org", "*.archive.org"),
            "accel": None,
            "public_url": "auto",
            "trusted_proxies": (ip_network("127.0.0.0/8"), ip_network("::1")),
            "image_mode": "serve",
            "alias_ttl": 86400,
            "listing_ttl": 86400,
            "absent_ttl": 3600,
            "absent_thumb_ttl": 300,
            "max_image_size": 128,
            "substitute_max_size": 2,
            "upstream_concurrency": 16,
            "upstream_timeout": 60,
            "contact": PROJECT_PAGE,
            "admin_token": None,
        }.items():
            self.assertEqual(getattr(settings, name), expected, name)
        self.assertEqual(settings.max_bytes, 100 * MEGABYTE)
        self.assertEqual(settings.clean_to_bytes, 90 * MEGABYTE)
        self.assertEqual(settings.lifetimes.alias_s, 86400)
        self.assertEqual(settings.lifetimes.absent_thumb_s, 300)

    def test_directory(self) -> None:
        """As set; else the shared folder if it can be used, else the user's own."""
        self.assertEqual(setting("CACHE_DIR", "/x/y").directory(), pathlib.Path("/x/y"))
        directory = load({}).directory()
        self.assertTrue(directory == SHARED_DIR or directory.name == "coverart")

    def test_user_agent(self) -> None:
        """Name, version and a contact, in the form that MusicBrainz asks for."""
        agent = setting("CONTACT", "me@example.org").user_agent
        self.assertRegex(agent, r"^coverart/\S+ \( me@example\.org \)$")

    def test_documented(self) -> None:
        """Every variable has a meaning for the help text, on one line."""
        known = variables()
        self.assertGreaterEqual(len(known), 21)
        for variable, meaning in known.items():
            self.assertTrue(variable.startswith(PREFIX))
            self.assertGreater(len(meaning), 10)
            self.assertNotIn("\n", meaning)


class ValueTests(SynchronousTestCase):
    """Values that are taken."""

    def test_taken(self) -> None:
        """Values at their limits, and with blanks around them, are what they say."""
        for name, text, field, expected in (
            ("CACHE_MAX_SIZE", "1", "cache_max_size", 1),
            ("CACHE_MAX_SIZE", " 5 ", "cache_max_size", 5),
            ("CACHE_MAX_SIZE", "007", "cache_max_size", 7),
            ("CACHE_CLEAN_TO", "0", "cache_clean_to", 0),
            ("CACHE_CLEAN_TO", "99.5", "cache_clean_to", 99.5),
            ("CACHE_CLEAN_TO", "100", "cache_clean_to", 100),
            ("CACHE_CLEANUP_INTERVAL", "0.1", "cache_cleanup_interval", 0.1),
            ("LISTEN", "tcp:80 unix:/run/x", "listen", ("tcp:80", "unix:/run/x")),
            ("UPSTREAM", "http://127.0.0.1:8191/", "upstream", "http://127.0.0.1:8191"),
            ("UPSTREAM", "http://[::1]:8191", "upstream", "http://[::1]:8191"),
            ("EVENT_UPSTREAM", "https://x/y/", "event_upstream", "https://x/y"),
            ("ALLOWED_HOSTS", "A.org, *.B.org", "allowed_hosts", ("a.org", "*.b.org")),
            ("ALLOWED_HOSTS", "127.0.0.1:1", "allowed_hosts", ("127.0.0.1:1",)),
            ("ALLOWED_HOSTS", "[::1]:65535", "allowed_hosts", ("[::1]:65535",)),
            ("ACCEL", "/cache-files/", "accel", "/cache-files/"),
            (
                "PUBLIC_URL",
                "https://covers.example/caa/",
                "public_url",
                "https://covers.example/caa",
            ),
            ("PUBLIC_URL", "off", "public_url", "off"),
            ("TRUSTED_PROXIES", "10.0.0.1", "trusted_proxies", (ip_network("10.0.0.1"),)),
            (
                "TRUSTED_PROXIES",
                "10.0.0.0/8, fc00::/7",
                "trusted_proxies",
                (ip_network("10.0.0.0/8"), ip_network("fc00::/7")),
            ),
            ("IMAGE_MODE", "redirect", "image_mode", "redirect"),
            ("ALIAS_TTL", "0", "alias_ttl", 0),
            ("ABSENT_TTL", "0.5", "absent_ttl", 0.5),
            ("MAX_IMAGE_SIZE", "4095", "max_image_size", 4095),
            ("SUBSTITUTE_MAX_SIZE", "0", "substitute_max_size", 0),
            ("SUBSTITUTE_MAX_SIZE", "0.5", "substitute_max_size", 0.5),
            ("UPSTREAM_CONCURRENCY", "1000", "upstream_concurrency", 1000),
            ("UPSTREAM_TIMEOUT", "3600", "upstream_timeout", 3600),
            ("CONTACT", " me@example.org ", "contact", "me@example.org"),
            ("ADMIN_TOKEN", "a b", "admin_token", "a b"),
        ):
            with self.subTest(name=name, text=text):
                self.assertEqual(getattr(setting(name, text), field), expected)

    def test_empty_is_unset(self) -> None:
        """A variable that is set but empty has its default, as compose files pass it on."""
        for text in ("", " ", "\t\n"):
            blank = load(dict.fromkeys(variables(), text))
            self.assertEqual(blank, load({}))

    def test_empty_option(self) -> None:
        """An option given as empty text is no value either: no empty token, no folder '.'."""
        options = dict.fromkeys(variables(), "")
        self.assertEqual(load({PREFIX + "ADMIN_TOKEN": "x"}, options=options), load({}))

    def test_others_variables(self) -> None:
        """Variables that are none of ours are not looked at."""
        self.assertEqual(load({"CACHE_MAX_SIZE": "x", "PATH": "", "HOME": "/"}), load({}))


class RefusalTests(SynchronousTestCase):
    """Values that are refused."""

    def refusal(self, name: str, text: str) -> str:
        """The one line that refuses a value: it names the variable, the value, what is allowed."""
        error = self.assertRaises(ConfigError, setting, name, text)
        line = str(error)
        self.assertEqual(len(line.splitlines()), 1, line)
        shown = "" if name == "REDIS_URL" else f"={re.sub('//.*@', '//…@', text)!r}"
        self.assertTrue(line.startswith(f"{PREFIX}{name}{shown}: must be "), line)
        self.assertGreater(len(line.partition(": must be ")[2]), 5)
        return line

    def test_odd_numbers(self) -> None:
        """What Python takes for a number and an operator does not is refused, everywhere."""
        for name in (
            *("CACHE_MAX_SIZE", "CACHE_CLEAN_TO", "CACHE_CLEANUP_INTERVAL", "ALIAS_TTL"),
            *("LISTING_TTL", "ABSENT_TTL", "ABSENT_THUMB_TTL", "MAX_IMAGE_SIZE"),
            *("UPSTREAM_CONCURRENCY", "UPSTREAM_TIMEOUT", "SUBSTITUTE_MAX_SIZE"),
        ):
            for text in (
                *("1e3", "-1", "+1", "nan", "inf", "Infinity", "\u0661", "1_000", "1,5", "0x10"),
                *("1 0", "5s", "five", ".5", "5.", "1" * 16, "9" * 5000, "--", "\u00b2", "1\n2"),
            ):
                with self.subTest(name=name, text=text):
                    self.refusal(name, text)

    def test_limits(self) -> None:
        """Numbers beyond what makes sense are refused."""
        for name, text in (
            *(("CACHE_MAX_SIZE", "0"), ("CACHE_MAX_SIZE", "1.5"), ("CACHE_MAX_SIZE", "9" * 15)),
            *(("CACHE_CLEANUP_INTERVAL", "0"), ("CACHE_CLEANUP_INTERVAL", "0.09")),
            *(("MAX_IMAGE_SIZE", "0"), ("MAX_IMAGE_SIZE", "4096"), ("MAX_IMAGE_SIZE", "1.5")),
            ("SUBSTITUTE_MAX_SIZE", "4095.1"),
            *(("UPSTREAM_CONCURRENCY", "0"), ("UPSTREAM_CONCURRENCY", "1001")),
            *(("UPSTREAM_TIMEOUT", "0"), ("UPSTREAM_TIMEOUT", "3600.1")),
            *(("ALIAS_TTL", "999999999999"), ("LISTING_TTL", "999999999999")),
        ):
            with self.subTest(name=name, text=text):
                self.refusal(name, text)

    def test_words(self) -> None:
        """Of words, only those that are listed."""
        self.assertIn("oldest", self.refusal("CACHE_EVICTION", "random"))
        self.assertIn("serve or redirect", self.refusal("IMAGE_MODE", "Redirect"))
        self.refusal("IMAGE_MODE", "0")

    def test_urls(self) -> None:
        """Base URLs are http or https, with a host, without user, query or fragment."""
        for name in ("UPSTREAM", "EVENT_UPSTREAM", "PUBLIC_URL"):
            for text in (
                *("archive.org", "//archive.org", "ftp://archive.org", "http://", "https:///x"),
                *(
                    "http://u:p@x",
                    "http://x?y",
                    "http://x#y",
                    "http://x y",
                    "http://x:port",
                    'http://x/"',
                    "http://x/\\",
                ),
                *(
                    "http://x:65536",
                    "http://[::1",
                    "http://\u00e4.org",
                    "http://x/\n",
                    "javascript:1",
                ),
            ):
                if text.strip() == text:
                    with self.subTest(name=name, text=text):
                        self.refusal(name, text)

    def test_hosts(self) -> None:
        """Patterns cover what is below a name, and nothing wider; entries are names, not URLs."""
        for text in (
            *(",", "*", "*.", "a.*", "*a.org", "https://archive.org", "archive.org/", "a..b"),
            *("archive.org.", ".archive.org", "a b@c", "[::1]", "::1", "a:", "a:x", "a:123456"),
            *("*.archive.org:443", "a:65536", "a:0", "\u0430rchive.org", "\u212a.org"),
        ):
            with self.subTest(text=text):
                self.refusal("ALLOWED_HOSTS", text)

    def test_networks(self) -> None:
        """Proxies are addresses and networks: no names, no range that its own length cuts short."""
        for text in (",", "nginx", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.256", "::1/129", "unix:"):
            with self.subTest(text=text):
                self.refusal("TRUSTED_PROXIES", text)

    def test_paths(self) -> None:
        """The internal prefix is a plain path with slashes around it."""
        for text in ("cache-files", "/cache-files", "cache/", "/", "//", "/a//", "/a b/", "/a?/"):
            with self.subTest(text=text):
                self.refusal("ACCEL", text)

    def test_contact(self) -> None:
        """What goes into a header is one line of ASCII that can't end the comment it stands in."""
        for text in ("a\r\nX-Evil: 1", "a) evil (", "m\u00fcller@example.org", "a\x00", "a\tb"):
            self.refusal("CONTACT", text)

    def test_two_that_do_not_go_together(self) -> None:
        """A cleanup can't leave more than the maximum; the line names both."""
        wrong = {PREFIX + "CACHE_MAX_SIZE": "50", PREFIX + "CACHE_CLEAN_TO": "50.1"}
        line = str(self.assertRaises(ConfigError, load, wrong))
        for part in (f"{PREFIX}CACHE_CLEAN_TO='50.1'", f"{PREFIX}CACHE_MAX_SIZE", "50"):
            self.assertIn(part, line)
        self.assertEqual(len(line.splitlines()), 1)
        self.refusal("CACHE_CLEAN_TO", "-1")

    def test_no_password_is_quoted(self) -> None:
        """What is wrong with a URL is told without the password that it may hold."""
        for text in (
            "redis://:geheim@host:port/0",
            "redis://user:geheim@/0/1",
            "redis://:geheim",
            "redis//:geheim@host",
            "unix://:geheim@socket",
            "redis+sentinel://:geheim@host:26379",
            "rediss://:gehe@im@host:6379/0 geheim",
        ):
            line = str(self.assertRaises(ConfigError, setting, "REDIS_URL", text))
            self.assertTrue(line.startswith(f"{PREFIX}REDIS_URL: must be redis://"), line)
            self.assertNotIn("geheim", line)
        line = str(
            self.assertRaises(ConfigError, setting, "UPSTREAM", "https://user:geheim@host/a")
        )
        self.assertTrue(line.startswith(f"{PREFIX}UPSTREAM='https://…@host/a': must be "), line)

    def test_name_servers(self) -> None:
        """Addresses alone: their names would have to be looked up."""
        for text, servers in {
            "9.9.9.9": (("9.9.9.9", 53),),
            "9.9.9.9:5353, 2620:fe::fe [2620:fe::9]:5353": (
                ("9.9.9.9", 5353),
                ("2620:fe::fe", 53),
                ("2620:fe::9", 5353),
            ),
        }.items():
            self.assertEqual(setting("RESOLVER", text).resolver, servers)
        for text in (
            "dns.example",
            "9.9.9",
            "9.9.9.9:0",
            "9.9.9.9:65536",
            "9.9.9.9,",
            "[::1",
            "::x",
        ):
            self.assertIn("RESOLVER=", self.refusal("RESOLVER", text))

    def test_proxies(self) -> None:
        """A proxy that can't be used ends the start too, and is told without its login."""
        error = self.assertRaises(ConfigError, load, {"https_proxy": "https://me:geheim@p:1"})
        line = str(error)
        self.assertTrue(line.startswith("https_proxy='https://…@p:1': must be http://, "), line)
        self.assertEqual(
            str(load({"ALL_PROXY": "p:1"}).proxies), "https by http://p:1, http by http://p:1"
        )

    @examples(200)
    @given(st.sampled_from(sorted(variables())), st.text(max_size=30))
    def test_anything(self, variable: str, text: str) -> None:
        """Text of any kind is a value or a refusal on one line; never another error."""
        try:
            load({variable: text})
        except ConfigError as error:
            line = str(error)
            self.assertEqual(len(line.splitlines()), 1)
            shown = "" if variable == PREFIX + "REDIS_URL" else f"={text!r}"
            if not re.search("(?s)//.*@", text):
                self.assertTrue(line.startswith(f"{variable}{shown}"), line)


class SourceTests(SynchronousTestCase):
    """Where values come from."""

    def setUp(self) -> None:
        self.directory = folder(self)

    def write(self, text: str) -> None:
        """A .env file."""
        (self.directory / ".env").write_text(text, encoding="utf-8")

    def settings(
        self, environment: dict[str, str], options: dict[str, str] | None = None
    ) -> Settings:
        """What the three sources together say."""
        return load(read_environment(self.directory, environment), options=options)

    def test_order(self) -> None:
        """A .env file counts least, then the environment, then the options."""
        name = PREFIX + "CACHE_MAX_SIZE"
        self.assertEqual(self.settings({}).cache_max_size, 100)
        self.write(f"{name}=7\n# comment\n{PREFIX}ALIAS_TTL='9'\n")
        self.assertEqual(self.settings({}).cache_max_size, 7)
        self.assertEqual(self.settings({name: "8"}).cache_max_size, 8)
        settings = self.settings({name: "8"}, {name: "9"})
        self.assertEqual((settings.cache_max_size, settings.alias_ttl), (9, 9))

    def test_empty_covers_nothing(self) -> None:
        """An empty variable of the environment counts as unset, so the .env file's value shows."""
        name = PREFIX + "CACHE_MAX_SIZE"
        self.write(f"{name}=7\n")
        self.assertEqual(self.settings({name: ""}).cache_max_size, 7)

    def test_odd_files(self) -> None:
        """A name without a value, and lines that are no setting, are passed over."""
        self.write(f"{PREFIX}CACHE_MAX_SIZE\n{PREFIX}ALIAS_TTL=\nexport {PREFIX}ABSENT_TTL=5\n")
        settings = self.settings({})
        self.assertEqual(
            (settings.cache_max_size, settings.alias_ttl, settings.absent_ttl), (100, 86400, 5)
        )

    def test_wrong_in_the_file(self) -> None:
        """A wrong value in the file is refused like any other."""
        self.write(f"{PREFIX}CACHE_MAX_SIZE=much\n")
        line = str(self.assertRaises(ConfigError, self.settings, {}))
        self.assertIn(f"{PREFIX}CACHE_MAX_SIZE='much'", line)
