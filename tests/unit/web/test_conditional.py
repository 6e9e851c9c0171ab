"""Conditional and range requests, against the examples and rules of RFC 9110."""

from datetime import UTC, datetime
from email.utils import format_datetime

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.http_date import http_date
from coverart.web.conditional import Header, Span, Validators, asked_span, condition
from tests.support.strategies import examples

MODIFIED = 784111777
"""Sun, 06 Nov 1994 08:49:37 GMT, the date of the RFC's examples (section 5.6.7)."""
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"
FILE = Validators(size_bytes=10000, modified=MODIFIED)
ETAG = f'"{FILE.etag}"'


def headers(**values: str) -> Header:
    """A look-up of headers; underscores stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in values.items()}
    return named.get


def bytes_of(text: str, **more: str) -> Span | None:
    """The span of a Range header."""
    return asked_span(headers(range=text, **more), FILE)


_dates = st.one_of(
    st.sampled_from(
        [DATE, EARLIER, LATER, "", "yesterday", "0", "Sun, 06 Nov 1994 08:49:37 +2400"]
    ),
    st.builds(
        lambda y, h, z: f"Sun, 06 Nov {y} {h}:49:37 {z}",
        st.integers(-5, 10**25),
        st.integers(-5, 10**25),
        st.one_of(st.just("GMT"), st.integers(-(10**20), 10**20).map(str)),
    ),
    st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)).map(  # noqa: DTZ001
        lambda moment: format_datetime(moment.replace(tzinfo=UTC), usegmt=True)
    ),
)
_numbers = st.one_of(st.integers(-3, 12000), st.integers(0, 10**30)).map(str)
_ranges = st.lists(
    st.one_of(
        st.tuples(_numbers, _numbers).map("-".join),
        _numbers.map(lambda n: f"{n}-"),
        _numbers.map(lambda n: f"-{n}"),
        st.sampled_from(["", "-", "--", " ", "x-y", "0-0", "\u0661-\u0662", "1_0-2_0", "+1-2"]),
    ),
    max_size=20,
).map(lambda parts: "bytes=" + ",".join(parts))
_texts = st.text(st.characters(max_codepoint=255), max_size=40)


class ValidatorTests(SynchronousTestCase):
    """The validators."""

    def test_form(self) -> None:
        """The entity tag is nginx's: mtime and size in hexadecimal."""
        self.assertEqual(FILE.etag, "2ebc9a21-2710".replace("2ebc9a21", f"{MODIFIED:x}"))
        self.assertEqual(Validators(size_bytes=255, modified=16).etag, "10-ff")

    def test_dates(self) -> None:
        """All three forms of a date are read (RFC 9110 section 5.6.7)."""
        expected = datetime.fromtimestamp(MODIFIED, UTC)
        for text in (DATE, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"):
            self.assertEqual(http_date(text), expected)
        self.assertIsNone(http_date(None))
        for text in ("", "x", "Sun, 06 Nov 99999999999999999999 08:49:37 GMT"):
            self.assertIsNone(http_date(text))


class ConditionTests(SynchronousTestCase):
    """Conditions (section 13)."""

    def test_none(self) -> None:
        """Without a condition the answer is the file."""
        self.assertIsNone(condition(headers(), FILE))

    def test_if_none_match(self) -> None:
        """A tag held, weak or strong, alone or in a list, or any by *, means 304."""
        for value in (ETAG, f"W/{ETAG}", f'"x", {ETAG}', f'"x",W/{ETAG} , "y"', "*"):
            self.assertEqual(condition(headers(if_none_match=value), FILE), 304, value)
        for value in ('"x"', 'W/"x"', '""', FILE.etag.upper().join('""')):
            self.assertIsNone(condition(headers(if_none_match=value), FILE), value)

    def test_if_none_match_alone_counts(self) -> None:
        """If-Modified-Since is ignored beside If-None-Match (section 13.1.3)."""
        both = headers(if_none_match='"x"', if_modified_since=LATER)
        self.assertIsNone(condition(both, FILE))
        both = headers(if_none_match=ETAG, if_modified_since=EARLIER)
        self.assertEqual(condition(both, FILE), 304)

    def test_if_modified_since(self) -> None:
        """304 from the file's own second on; a date that is none is ignored."""
        self.assertEqual(condition(headers(if_modified_since=DATE), FILE), 304)
        self.assertEqual(condition(headers(if_modified_since=LATER), FILE), 304)
        self.assertIsNone(condition(headers(if_modified_since=EARLIER), FILE))
        self.assertIsNone(condition(headers(if_modified_since="now"), FILE))

    def test_if_match(self) -> None:
        """Only a strong tag matches (section 13.1.1); if none does, 412."""
        for value in (ETAG, "*", f'"x", {ETAG}'):
            self.assertIsNone(condition(headers(if_match=value), FILE), value)
        for value in ('"x"', f"W/{ETAG}", '""'):
            self.assertEqual(condition(headers(if_match=value), FILE), 412, value)

    def test_if_unmodified_since(self) -> None:
        """412 if the file is younger; ignored beside If-Match (section 13.1.4)."""
        self.assertIsNone(condition(headers(if_unmodified_since=DATE), FILE))
        self.assertEqual(condition(headers(if_unmodified_since=EARLIER), FILE), 412)
        both = headers(if_match=ETAG, if_unmodified_since=EARLIER)
        self.assertIsNone(condition(both, FILE))

    def test_order(self) -> None:
        """If-Match is judged before If-None-Match (section 13.2.2)."""
        both = headers(if_match='"x"', if_none_match=ETAG)
        self.assertEqual(condition(both, FILE), 412)
        both = headers(if_match=ETAG, if_none_match=ETAG)
        self.assertEqual(condition(both, FILE), 304)

    @examples(200)
    @given(
        st.dictionaries(
            st.sampled_from(
                ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]
            ),
            st.one_of(_texts, _dates, st.sampled_from([ETAG, "*", "W/", '"'])),
        )
    )
    @example({"if-modified-since": "1 Jan 99999999999999999999 00:00:00"})
    @example({"if-unmodified-since": "1 Jan 2024 99999999999999:00:00"})
    def test_anything(self, values: dict[str, str]) -> None:
        """Headers of any content give an answer."""
        self.assertIn(condition(values.get, FILE), (None, 304, 412))


class SpanTests(SynchronousTestCase):
    """Ranges (section 14)."""

    def test_examples(self) -> None:
        """The examples of section 14.1.2, for a file of 10000 bytes."""
        for text, expected in {
            "bytes=0-499": Span(0, 500),
            "bytes=500-999": Span(500, 1000),
            "bytes=-500": Span(9500, 10000),
            "bytes=9500-": Span(9500, 10000),
            "bytes= 0 - 999 ": Span(0, 1000),
        }.items():
            self.assertEqual(bytes_of(text), expected, text)

    def test_clipped(self) -> None:
        """An end beyond the file, and a suffix longer than it, mean as much as there is."""
        self.assertEqual(bytes_of("bytes=9990-20000"), Span(9990, 10000))
        self.assertEqual(bytes_of("bytes=-20000"), Span(0, 10000))

    def test_unsatisfiable(self) -> None:
        """A range that begins behind the end is not there."""
        for text in ("bytes=10000-", "bytes=10000-10001"):
            self.assertIs(bool(bytes_of(text)), False, text)
            self.assertIsNotNone(bytes_of(text), text)

    def test_whole(self) -> None:
        """What is in another unit, or of several parts, asks for the whole."""
        for text in (
            *("", "bytes", "seconds=0-1", "0-499", "bytes =0-1"),
            *("bytes=0-0,-1", "bytes=0-9,10000-", "bytes=10000-,20000-", "bytes=0-1,x", "bytes=,"),
        ):
            self.assertIsNone(bytes_of(text), text)
        self.assertIsNone(asked_span(headers(), FILE))

    def test_malformed(self) -> None:
        """What is malformed asks for nothing that is there, as nginx has it."""
        for text in (
            *("bytes=", "bytes=-", "bytes=a-b", "bytes=5-4", "bytes=-0", "bytes=--5"),
            *("bytes=1.5-2", "bytes=0x0-0x1", "bytes=\u0661-\u0662", "bytes=+1-2", "bytes=1-2-3"),
        ):
            self.assertIs(bool(bytes_of(text)), False, text)
            self.assertIsNotNone(bytes_of(text), text)

    def test_if_range(self) -> None:
        """The range counts only if the client holds these bytes (section 13.1.5)."""
        wanted = Span(0, 10)
        for value, expected in {
            ETAG: wanted,
            DATE: wanted,
            '"x"': None,
            f"W/{ETAG}": None,
            EARLIER: None,
            LATER: None,
            "": None,
            "1 Jan 99999999999999999999 00:00:00": None,
        }.items():
            self.assertEqual(bytes_of("bytes=0-9", if_range=value), expected, value)

    @examples(300)
    @given(
        st.one_of(_ranges, _texts),
        st.one_of(st.none(), _texts, _dates, st.just(ETAG)),
        st.integers(1, 20000),
    )
    def test_anything(self, text: str, if_range: str | None, size: int) -> None:
        """Whatever is asked for, what is told lies within the file and is no more than it."""
        more = {} if if_range is None else {"if-range": if_range}
        span = asked_span(
            {"range": text, **more}.get, Validators(size_bytes=size, modified=MODIFIED)
        )
        if span:
            self.assertLessEqual(0, span.start)
            self.assertLess(span.start, span.stop)
            self.assertLessEqual(span.stop, size)

    @examples(200)
    @given(st.integers(0, 9999), st.integers(0, 9999))
    def test_as_asked(self, first: int, last: int) -> None:
        """A well-formed range is told as it was asked for."""
        first, last = sorted((first, last))
        self.assertEqual(bytes_of(f"bytes={first}-{last}"), Span(first, last + 1))
