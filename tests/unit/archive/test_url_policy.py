"""Where a fetch may go: nothing outside leads it anywhere else."""

from urllib.parse import urlsplit

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.archive.url_policy import Hop, Rules, archive_file, file_name, is_public
from coverart.errors import BadUpstream
from coverart.model import Entity, ImageRef, Target
from tests.support.strategies import MBID, OTHER_MBID, examples

RULES = Rules(("archive.org", "*.archive.org", "127.0.0.1:8192", "[::1]:8192", "mirror:80"))
ITEM = f"https://archive.org/download/mbid-{MBID}"
FROM = RULES.check(f"{ITEM}/mbid-{MBID}-7.jpg")

HOSTILE = (
    *("https://127.0.0.1/", "https://127.0.0.1:443/", "http://127.0.0.1/", "https://localhost/"),
    *("http://169.254.169.254/latest/meta-data/", "https://169.254.169.254/"),
    *("https://10.0.0.1/", "https://10.255.255.255/", "https://192.168.1.1/"),
    *("https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[fe80::1%25eth0]/"),
    *("https://0.0.0.0/", "https://2130706433/", "https://0177.0.0.1/", "https://0x7f000001/"),
    *("https://127.1/", "https://[::]/", "https://[::1]:443/", "https://[/", "https://]/"),
    *("file:///etc/passwd", "file://archive.org/etc/passwd", "ftp://archive.org/", "gopher://x/"),
    *("javascript:alert(1)", "data:image/jpeg,x", "https:", "https://", "https:///x", "://x"),
    *("http://archive.org/", "http://ia800.us.archive.org/x", "http://archive.org:443/"),
    *("https://archive.org:80/", "https://archive.org:8443/", "https://archive.org:0/"),
    *("https://archive.org:65536/", "https://archive.org:-1/", "https://archive.org:44a/"),
    *("https://archive.org:443:443/", "https://archive.org:%34%34%33/"),
    *("https://archive.org.evil.example/", "https://archive.org@evil.example/"),
    *("https://archive.org:443@evil.example/", "https://u:p@archive.org/", "https://@archive.org/"),
    *("https://evilarchive.org/", "https://evil-archive.org/", "https://archive.orgevil/"),
    *("https://archive.org./", "https://.archive.org/", "https://a..archive.org/", "https://org/"),
    *("https://evil.example\\.archive.org/", "https://evil.example\\@archive.org/"),
    *("https://archive.org/\\evil.example", "https://archive.org/x\\..\\y"),
    *("https:\\\\archive.org\\x", "\\\\evil.example/x", "/\\evil.example/x"),
    *("https://archive.org\t/", "https://archive.org\n.evil.example/", "https://archive\r.org/"),
    *(" https://evil.example/", "https://archive.org /", "https://evil.example#.archive.org/"),
    *("https://evil.example?.archive.org/", "https://evil.example/.archive.org/"),
    *("//evil.example/x", "///evil.example/x", "https://evil.example:443#@archive.org/"),
    *("https://xn--rchive-4ve.org/", "https://arch%69ve.org/", "https://archive%2eorg/"),
    *("https://127.0.0.1:8193/", "http://mirror:443/x", "http://[0:0:0:0:0:0:0:1]:8192/"),
)
HOSTILE_BYTES = (
    b"https://\xd0\xb0rchive.org/",
    b"https://archive\xe3\x80\x82org/",
    b"https://archive.org\xff/",
    b"https://archive.org/\x00",
    b"\xef\xbc\x8f\xef\xbc\x8fevil.example/",
    b"",
    b" ",
    b"https://archive.org/" + b"a" * 3000,
)

_text = st.sampled_from(
    [
        *("https:", "http:", "//", "/", "\\", "@", ":", "443", "8192", "0", "archive.org", "?"),
        *("ia1.us.archive.org", ".evil", "evil.example", "127.0.0.1", "[::1]", "[", "]", "#"),
        *(".", "..", "%2e", "%", "\t", "\n", " ", f"mbid-{MBID}", "-7.jpg", "u:p"),
    ]
)
_locations = st.one_of(
    st.binary(max_size=80),
    st.lists(_text, max_size=10).map(lambda pieces: "".join(pieces).encode()),
)


class RulesTests(SynchronousTestCase):
    """Which URLs are followed."""

    def test_the_archives_ways(self) -> None:
        """The hosts of a real chain are allowed, whatever the case of their names; it goes."""
        for url, normal in {
            ITEM: ITEM,
            "https://ia801507.us.archive.org/7/items/mbid-x/Y.jpg": "",
            "https://dn720006.ca.archive.org/0/items/mbid-x/y.jpg": "",
            "https://ARCHIVE.org/X": "https://archive.org/X",
            "HTTPS://archive.org/x": "https://archive.org/x",
            "https://archive.org:443/x": "",
        }.items():
            hop = RULES.check(url)
            self.assertEqual(
                (hop.url, hop.port, RULES.trusts(hop.host, hop.port)), (normal or url, 443, False)
            )

    def test_relative(self) -> None:
        """A Location may be relative (RFC 9110 section 10.2.2)."""
        for location, url in {
            b"/x/y.jpg": "https://archive.org/x/y.jpg",
            b"other.jpg": f"{ITEM}/other.jpg",
            b"../x": "https://archive.org/download/x",
            b"//ia1.us.archive.org/x": "https://ia1.us.archive.org/x",
        }.items():
            self.assertEqual(RULES.follow(FROM, location).url, url)

    def test_no_location(self) -> None:
        """A redirect that leads nowhere is the archive's mistake."""
        self.assertRaises(BadUpstream, RULES.follow, FROM, None)

    def test_hostile(self) -> None:
        """No spelling leads to this machine, its neighbours, other hosts, ports or schemes."""
        for url in HOSTILE:
            with self.subTest(url=url):
                self.assertRaises(BadUpstream, RULES.check, url)
                try:
                    hop = RULES.follow(FROM, url.encode())
                except BadUpstream:
                    continue
                # Some are harmless as relative references: they stay at the archive.
                self.assertEqual(hop.origin, "archive.org:443")
                self.assertEqual(urlsplit(hop.url).netloc, "archive.org")
        for location in HOSTILE_BYTES:
            with self.subTest(location=location):
                self.assertRaises(BadUpstream, RULES.follow, FROM, location)

    def test_look_alikes(self) -> None:
        """Letters that look like the archive's, or fold to them, are other hosts."""
        for host in (
            "\u0430rchive.org",
            "archive\u3002org",
            "archive\uff0eorg",
            "archi\u24e5e.org",
        ):
            self.assertRaises(BadUpstream, RULES.check, f"https://{host}/")

    def test_listed_by_name(self) -> None:
        """An entry with a port is trusted, by http too, on that host and port alone."""
        for url in ("http://127.0.0.1:8192/x", "https://127.0.0.1:8192/x", "http://[::1]:8192/x"):
            RULES.check(url)
        RULES.check("http://mirror/x")
        for url in ("http://127.0.0.1/x", "https://127.0.0.1/x", "https://mirror/x"):
            self.assertRaises(BadUpstream, RULES.check, url)
        self.assertRaises(BadUpstream, RULES.check, "ftp://127.0.0.1:8192/x")

    def test_pattern_covers_no_apex(self) -> None:
        """The pattern *.name is for what lies below the name, not for the name itself."""
        rules = Rules(("*.archive.org",))
        self.assertTrue(rules.allows("https", "ia1.archive.org", 443))
        self.assertFalse(rules.allows("https", "archive.org", 443))
        self.assertFalse(rules.allows("https", "evilarchive.org", 443))

    def test_nothing_listed(self) -> None:
        """Without entries nothing is allowed."""
        self.assertRaises(BadUpstream, Rules(()).check, "https://archive.org/")

    @examples(500)
    @given(_locations)
    @example(b"https:evil.example")
    @example(b"https:/evil.example")
    def test_any_location(self, location: bytes) -> None:
        """Whatever a Location says, it is refused or leads where the rules allow."""
        try:
            hop = RULES.follow(FROM, location)
        except BadUpstream:
            return
        self.assert_allowed(hop)

    @examples(300)
    @given(st.one_of(st.text(max_size=80), st.lists(_text, max_size=10).map("".join)))
    def test_any_url(self, url: str) -> None:
        """The same for text of any kind."""
        try:
            hop = RULES.check(url)
        except BadUpstream:
            return
        self.assert_allowed(hop)

    def assert_allowed(self, hop: Hop) -> None:
        """A hop leads to the archive by https, or to what is listed by name; on no other reading."""
        scheme = urlsplit(hop.url).scheme
        self.assertTrue(RULES.allows(scheme, hop.host, hop.port))
        self.assertTrue(hop.url.endswith(hop.path))
        if hop.origin not in RULES.hosts:
            self.assertEqual((scheme, hop.port), ("https", 443))
            self.assertTrue(hop.host == "archive.org" or hop.host.endswith(".archive.org"))
        self.assertTrue(hop.url.isascii() and hop.url.isprintable() and " " not in hop.url)
        # Read the plainest way there is: what stands between // and the next / is the host.
        authority = hop.url.split("/")[2].split("?")[0].split("#")[0].lower()
        self.assertIn(authority.removesuffix(f":{hop.port}").removesuffix(":"), (hop.host,))


class PublicTests(SynchronousTestCase):
    """Which addresses are of the public internet."""

    def test_public(self) -> None:
        """Addresses of the internet at large, IPv4 inside IPv6 included."""
        for address in (
            *("207.241.224.2", "8.8.8.8", "1.1.1.1", "2620:0:9c0::2", "2a00:1450::1"),
            *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
        ):
            self.assertTrue(is_public(address), address)

    def test_not_public(self) -> None:
        """This machine, its networks, groups, everybody, documentation, and what is no address."""
        for address in (
            *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1"),
            *("172.31.255.255", "192.168.0.1", "169.254.169.254", "100.64.0.1", "192.0.0.1"),
            *("192.0.2.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "239.255.255.255"),
            *("240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0"),
            *("fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1", "100::1"),
            *("5f00::1", "4000::1", "2002:808:808::1"),
            *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:7f00:1", "::ffff:169.254.169.254"),
            *("64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::7f00:1", "64:ff9b:1::1"),
            *("2002:7f00:1::1", "2002:a00:1::", "2001:0:7f00:1::", "::127.0.0.1", "::10.0.0.1"),
            *("::ffff:0:127.0.0.1", "64:ff9b::224.0.0.1", "2002:e000:1::"),
            *("", "localhost", "2130706433", "0177.0.0.1", "127.1", "8.8.8.8/32", "[::1]", "x"),
        ):
            with self.subTest(address=address):
                self.assertFalse(is_public(address), address)

    @examples(200)
    @given(st.ip_addresses(v=4))
    def test_no_detour(self, address: object) -> None:
        """No IPv6 form of an IPv4 address is public if the address itself is not."""
        if not is_public(str(address)):
            packed = int(address)  # type: ignore[call-overload]
            high, low = packed >> 16, packed & 0xFFFF
            for form in (
                *(f"::ffff:{address}", f"64:ff9b::{address}", f"2002:{high:x}:{low:x}::1"),
                *(f"::{address}", f"::ffff:0:{address}", f"64:ff9b:1::{address}"),
            ):
                self.assertFalse(is_public(form), form)

    @examples(200)
    @given(st.text(max_size=40))
    def test_anything(self, text: str) -> None:
        """Text that is no address is not public, and no error."""
        self.assertIn(is_public(text), (True, False))


class ArchiveFileTests(SynchronousTestCase):
    """What hop 1 points at."""

    def test_images(self) -> None:
        """Originals and thumbnails tell the image and the extension of what the URL names."""
        for name, extension in {
            f"mbid-{MBID}-7.jpg": "jpg",
            f"mbid-{MBID}-7.jpeg": "jpg",
            f"mbid-{MBID}-7.png": "png",
            f"mbid-{MBID}-7.gif": "gif",
            f"mbid-{MBID}-7.pdf": "pdf",
        }.items():
            file = archive_file(RULES.check(f"{ITEM}/{name}"), Entity.EVENT)
            ref = ImageRef(owner=Entity.EVENT, mbid=MBID, image_id=7)
            self.assertEqual(file.target, Target(ref=ref, extension=extension))
            self.assertEqual((file.base, file.mbid), ("https://archive.org/download/", MBID))

    def test_listing(self) -> None:
        """An index.json is a file without an image."""
        file = archive_file(RULES.check(f"{ITEM}/index.json"), Entity.RELEASE)
        self.assertEqual((file.target, file.mbid), (None, MBID))

    def test_mirror(self) -> None:
        """The folder of the items may lie anywhere, the root included."""
        url = f"http://127.0.0.1:8192/mbid-{MBID}/mbid-{MBID}-7.jpg"
        self.assertEqual(
            archive_file(RULES.check(url), Entity.RELEASE).base, "http://127.0.0.1:8192/"
        )

    def test_nonsense(self) -> None:
        """Any other form can't be trusted to be a cover."""
        for url in (
            *("https://archive.org/", "https://archive.org/details/x", f"{ITEM}/", f"{ITEM}/x.jpg"),
            *(f"{ITEM}/mbid-{OTHER_MBID}-7.jpg", f"{ITEM}/mbid-{MBID}-front.jpg"),
            *(f"{ITEM}/mbid-{MBID}-0.jpg", f"{ITEM}/mbid-{MBID}-7.webp", f"{ITEM}/mbid-{MBID}-7"),
            *(f"{ITEM}/mbid-{MBID}-7_thumb300.jpg", f"{ITEM}/mbid-{MBID}-7.jpg/x"),
            *(f"{ITEM}/mbid-{MBID}-7.jpg?x=1", f"{ITEM}/mbid-{MBID}-7.jpg#x"),
            *(f"{ITEM}/index.json?x", f"{ITEM}/index.html", f"{ITEM}/../mbid-{MBID}-7.jpg"),
            f"https://archive.org/login?to=/mbid-{MBID}/mbid-{MBID}-7.jpg",
            f"https://archive.org/x/mbid-{MBID.upper()}/mbid-{MBID.upper()}-7.jpg",
        ):
            with self.subTest(url=url):
                hop = RULES.check(url)
                self.assertRaises(BadUpstream, archive_file, hop, Entity.RELEASE)

    def test_file_name(self) -> None:
        """What is asked for is spelled as the archive spells it; thumbnails are always .jpg."""
        ref = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=7)
        self.assertEqual(file_name(ref, 0, "png"), f"mbid-{MBID}-7.png")
        self.assertEqual(file_name(ref, 250, "png"), f"mbid-{MBID}-7_thumb250.jpg")
        self.assertEqual(file_name(ref, 250, None), f"mbid-{MBID}-7_thumb250.jpg")
        self.assertRaises(ValueError, file_name, ref, 0, None)
