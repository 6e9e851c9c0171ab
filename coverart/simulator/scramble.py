"""Names that look random and yet tell what they name: keyed permutations of small numbers."""

from hashlib import blake2b
from uuid import RFC_4122, UUID

import attrs

_ROUNDS = 4
_MBID_BITS = 122  # a version-4 UUID has six fixed bits
_MBID_PLAIN_BITS = 36  # kind and index; the other 86 bits are zero, which is how strangers show
_INDEX_BITS = 32
_IMAGE_BITS = 36
_IMAGE_BASE = 10**10  # ids of the archive have eleven digits
_VARIANT = 0b10


@attrs.frozen
class Scramble:
    """
    A keyed permutation: a Feistel network whose round function is BLAKE2b.

    It makes names out of (kind, index) that look random, never collide and can be read back, so
    a catalogue of a million releases needs no table to know which names are its own.  It keeps
    no secret: four rounds are plenty for looks.
    """

    key: bytes

    def _round(self, number: int, half: int, bits: int) -> int:
        digest = blake2b(
            bytes((number, bits)) + half.to_bytes(8, "big"), key=self.key, digest_size=8
        )
        return int.from_bytes(digest.digest(), "big") >> (64 - bits)

    def _forward(self, value: int, bits: int) -> int:
        half = bits // 2
        left, right = value >> half, value & ((1 << half) - 1)
        for number in range(_ROUNDS):
            left, right = right, left ^ self._round(number, right, half)
        return left << half | right

    def _backward(self, value: int, bits: int) -> int:
        half = bits // 2
        left, right = value >> half, value & ((1 << half) - 1)
        for number in reversed(range(_ROUNDS)):
            left, right = right ^ self._round(number, left, half), left
        return left << half | right

    def mbid(self, kind: int, index: int) -> str:
        """Name the index-th thing of a kind; the name has the shape of a version-4 UUID."""
        mixed = self._forward(kind << _INDEX_BITS | index, _MBID_BITS)
        high, middle, low = mixed >> 74, mixed >> 62 & 0xFFF, mixed & ((1 << 62) - 1)
        return str(UUID(int=high << 80 | 4 << 76 | middle << 64 | _VARIANT << 62 | low))

    def read_mbid(self, mbid: str) -> tuple[int, int] | None:
        """Give back (kind, index), or None for a name this key never made."""
        try:
            name = UUID(mbid)
        except ValueError:
            return None
        if name.variant != RFC_4122 or name.version != 4 or str(name) != mbid:
            return None
        bits = name.int
        mixed = bits >> 80 << 74 | (bits >> 64 & 0xFFF) << 62 | bits & ((1 << 62) - 1)
        plain = self._backward(mixed, _MBID_BITS)
        if plain >> _MBID_PLAIN_BITS:
            return None
        return plain >> _INDEX_BITS, plain & ((1 << _INDEX_BITS) - 1)

    def image_id(self, number: int) -> int:
        """Name an image by an eleven-digit number; `number` is below 2**36."""
        # Multiplying by odd numbers and folding are permutations too, and these ids are made by the
        # dozen for each item, where the rounds above would take most of the time.
        mask = (1 << _IMAGE_BITS) - 1
        mixed = (number * 0x9E3779B97 + int.from_bytes(self.key[:4], "big")) & mask
        mixed ^= mixed >> (_IMAGE_BITS // 2)
        return _IMAGE_BASE + (mixed * 0x5851F42D5 & mask)

    def dice(self, *what: int) -> bytes:
        """Sixty-four bytes that are always the same for the same thing."""
        return blake2b(repr(what).encode(), key=self.key, digest_size=64).digest()
