"""What bytes are taken for an image."""

import pathlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.content import ENOUGH, accept, sniff
from coverart.errors import BadUpstream
from coverart.model import ORIGINAL, SIZES, MediaType
from tests.support.strategies import examples

DATA = pathlib.Path(__file__).parent.parent / "data"


class SniffTests(SynchronousTestCase):
    """The type by the first bytes."""

    def test_files_of_others(self) -> None:
        """Files that other programs wrote are taken for what they are."""
        for name, media in {
            "rocket.jpg": MediaType.JPEG,
            "brick.png": MediaType.PNG,
            "python.gif": MediaType.GIF,
            "hello-world.pdf": MediaType.PDF,
        }.items():
            head = (DATA / name).read_bytes()[:ENOUGH]
            self.assertIs(sniff(head), media, name)

    def test_both_gifs(self) -> None:
        """Both ages of GIF are GIF; a third does not exist."""
        self.assertIs(sniff(b"GIF87a.."), MediaType.GIF)
        self.assertIs(sniff(b"GIF89a.."), MediaType.GIF)
        self.assertIsNone(sniff(b"GIF88a.."))

    def test_others(self) -> None:
        """Pages, texts, other images, and what only mentions a type further on, are nothing."""
        for head in (
            *(b"", b"<!DOCTYP", b"<html>\r\n", b'{"images', b"RIFF\0\0\0\0", b"BM......"),
            *(b"\xff\xd8", b"\x89PNG\r\n\x1a", b"\x89PNG\n\x1a\n.", b"%PDF", b"%pdf-1.4"),
            *(b" \xff\xd8\xff....", b"\xef\xbb\xbf%PDF-", b"II*\0....", b"gif89a.."),
        ):
            self.assertIsNone(sniff(head), head)

    @examples(200)
    @given(st.binary(max_size=ENOUGH), st.binary(max_size=20))
    def test_enough(self, head: bytes, more: bytes) -> None:
        """More bytes than the first ones never change a type that was told."""
        full = head.ljust(ENOUGH, b"\0")
        self.assertIs(sniff(full), sniff(full + more))


class AcceptTests(SynchronousTestCase):
    """What is kept."""

    def test_originals(self) -> None:
        """An original may be of any of the four types."""
        self.assertIs(accept(b"%PDF-1.4", ORIGINAL), MediaType.PDF)
        self.assertIs(accept(b"\x89PNG\r\n\x1a\n", ORIGINAL), MediaType.PNG)

    def test_thumbnails(self) -> None:
        """The archive derives JPEG alone, so a thumbnail of another type is a mistake."""
        for size in SIZES:
            self.assertIs(accept(b"\xff\xd8\xff\xe0....", size), MediaType.JPEG)
            for head in (b"\x89PNG\r\n\x1a\n", b"GIF89a..", b"%PDF-1.4"):
                self.assertRaises(BadUpstream, accept, head, size)

    def test_pages(self) -> None:
        """An HTML page that came with 200 in place of an image is refused."""
        self.assertRaises(BadUpstream, accept, b"<!DOCTYPE html>", ORIGINAL)
