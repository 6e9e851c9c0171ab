"""What bytes are accepted from the archive: images by their first bytes, listings that parse (pure)."""

from __future__ import annotations

from coverart.errors import BadUpstream
from coverart.model import ORIGINAL, MediaType

ENOUGH = 8
"""First bytes that tell the type."""

_MAGIC = (
    (b"\xff\xd8\xff", MediaType.JPEG),
    (b"\x89PNG\r\n\x1a\n", MediaType.PNG),
    (b"GIF87a", MediaType.GIF),
    (b"GIF89a", MediaType.GIF),
    (b"%PDF-", MediaType.PDF),
)


def sniff(head: bytes) -> MediaType | None:
    """
    The type that these first bytes are of, None where it is none that covers have.

    Source: WHATWG MIME Sniffing section 6.1 and ISO 32000-1 section 7.5.2; the declared
    Content-Type counts for nothing.
    """
    for magic, media in _MAGIC:
        if head.startswith(magic):
            return media
    return None


def accept(head: bytes, size: int) -> MediaType:
    """
    The type of an image that starts with `head`.

    :raises BadUpstream: not an image, or a thumbnail that is no JPEG (the archive derives no others).
    """
    media = sniff(head)
    if media is None:
        raise BadUpstream("the archive sent something that is no JPEG, PNG, GIF or PDF")
    if size != ORIGINAL and media is not MediaType.JPEG:
        raise BadUpstream(f"the archive sent a thumbnail that is {media.value}")
    return media


def check_type(head: bytes, media: MediaType) -> None:
    """:raises BadUpstream: a file that begins with `head` is not of the type it was stored as."""
    if sniff(head) is not media:
        raise BadUpstream("a file in the cache is not of its type any more")
