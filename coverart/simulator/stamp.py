"""Make a file unique without drawing it again: write a comment where its format allows one."""

from zlib import crc32

import attrs

_PNG_AFTER_HEADER = 33  # signature, then the IHDR chunk, which has a fixed length


@attrs.frozen
class Stampable:
    """
    A rendered file, cut at the place where its format takes a comment.

    :ivar kind: ``jpg``, ``png``, ``gif`` or ``pdf``.
    """

    kind: str
    head: bytes
    tail: bytes

    @property
    def size_bytes(self) -> int:
        """How much memory it takes."""
        return len(self.head) + len(self.tail)

    def stamped(self, text: str) -> bytes:
        """Give the file with that comment in it; every reader of the format skips it."""
        return self.head + _COMMENTS[self.kind](text.encode("ascii")) + self.tail


def stampable(kind: str, data: bytes) -> Stampable:
    """
    Cut a file of that kind at the place for comments.

    :raises ValueError: the bytes do not begin or end as that kind does.
    """
    if kind == "jpg" and data.startswith(b"\xff\xd8"):
        # JFIF wants its APP0 segment first, right after the two bytes of SOI.
        cut = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
        return Stampable(kind, data[:cut], data[cut:])
    if kind == "png" and data.startswith(b"\x89PNG\r\n\x1a\n"):
        return Stampable(kind, data[:_PNG_AFTER_HEADER], data[_PNG_AFTER_HEADER:])
    if kind == "gif" and data.startswith(b"GIF8") and data.endswith(b";"):
        return Stampable(kind, data[:-1], b";")
    if kind == "pdf" and data.startswith(b"%PDF-"):
        return Stampable(kind, data, b"")
    raise ValueError(f"these bytes are no {kind}")


def _jpeg_comment(text: bytes) -> bytes:
    return b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text


def _png_comment(text: bytes) -> bytes:
    body = b"tEXtComment\0" + text
    return (len(body) - 4).to_bytes(4, "big") + body + crc32(body).to_bytes(4, "big")


def _gif_comment(text: bytes) -> bytes:
    if len(text) > 255:
        raise ValueError("a GIF comment block holds at most 255 bytes")
    return b"\x21\xfe" + bytes((len(text),)) + text + b"\0"


def _pdf_comment(text: bytes) -> bytes:
    return b"\n% " + text + b"\n"


_COMMENTS = {"jpg": _jpeg_comment, "png": _png_comment, "gif": _gif_comment, "pdf": _pdf_comment}
