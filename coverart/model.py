"""
The words of the cache as frozen values: what can be asked, what is held, where it points.

An *image* is identified by the release or event that owns it, its id and its size, and never
changes. An *alias* is a name that points at an image (a front, a back, a group's front, an id
under a merged MBID) and does change. A *listing* is the archive's index.json of one entity.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from functools import cached_property
from typing import Literal, TypeAlias

import attrs

ORIGINAL = 0
"""The size of an image as it was uploaded; other sizes are pixels of the longer side."""

MEGABYTE = 1 << 20

SIZES = (250, 500, 1200)
"""
The thumbnails the archive derives (https://musicbrainz.org/doc/Cover_Art_Archive/API).

A new one goes to the end: the place here is the size's code in the index (docs/contributing.md has
the other places).
"""


class Entity(StrEnum):
    """What an MBID is of, spelled as in the archive's paths."""

    RELEASE = "release"
    RELEASE_GROUP = "release-group"
    EVENT = "event"


class MediaType(Enum):
    """The types of bytes that are kept. `.value` is the exact Content-Type."""

    JPEG = "image/jpeg"
    PNG = "image/png"
    GIF = "image/gif"
    PDF = "application/pdf"

    @cached_property
    def extension(self) -> str:
        """That of such a file on disk, without a dot."""
        return "jpg" if self is MediaType.JPEG else self.value.rpartition("/")[2]


Name: TypeAlias = Literal["front", "back"] | int
"""How an image of an entity is named: by its role or by its id."""


@attrs.frozen(kw_only=True, cache_hash=True)
class ImageRef:
    """One image in all its sizes. `owner` is RELEASE or EVENT: groups own no images."""

    owner: Entity
    mbid: str
    image_id: int

    def at(self, size: int) -> ImageKey:
        return ImageKey(ref=self, size=size)

    @property
    def own_name(self) -> AliasKey:
        """The name that is this image's own identity."""
        return AliasKey(entity=self.owner, mbid=self.mbid, name=self.image_id)


@attrs.frozen(kw_only=True, cache_hash=True)
class ImageKey:
    """One file of an image; the bytes behind a key are never rewritten by the archive."""

    ref: ImageRef
    size: int

    @property
    def own_request(self) -> ImageRequest:
        """What asks for this file by the image's own name."""
        return ImageRequest(alias=self.ref.own_name, size=self.size)


@attrs.frozen(kw_only=True, cache_hash=True)
class AliasKey:
    """A name under an entity, whatever the size: all sizes of a front are of one image."""

    entity: Entity
    mbid: str
    name: Name

    @property
    def ages(self) -> bool:
        """
        Whether what it points at can change: a role's image can.

        An id names the same bytes for good, under a merged MBID too.
        """
        return not isinstance(self.name, int)

    @cached_property
    def own_ref(self) -> ImageRef | None:
        """The image this name is itself the identity of, unless the MBID was merged away."""
        if isinstance(self.name, int) and self.entity is not Entity.RELEASE_GROUP:
            return ImageRef(owner=self.entity, mbid=self.mbid, image_id=self.name)
        return None


@attrs.frozen(kw_only=True, cache_hash=True)
class ImageRequest:
    """What a client asked for, canonical: two spellings of one thing are equal."""

    alias: AliasKey
    size: int

    def image(self, target: Target | None) -> ImageKey | None:
        """Which image that is. :param target: of the name; None where only its own identity is known."""
        ref = self.alias.own_ref if target is None else target.ref
        return None if ref is None else ref.at(self.size)


@attrs.frozen(kw_only=True, cache_hash=True)
class ListingKey:
    """The listing of an entity; as a request and as a thing held."""

    entity: Entity
    mbid: str


Thing: TypeAlias = ImageRequest | ListingKey
"""What can be asked for."""


def name_of(thing: Thing) -> AliasKey | ListingKey:
    """What the archive knows a thing by, whatever its size."""
    return thing if isinstance(thing, ListingKey) else thing.alias


FileKey: TypeAlias = ImageKey | ListingKey
"""What has bytes on disk."""

Subject: TypeAlias = AliasKey | ImageKey | ListingKey
"""What can be absent: a name, one size of an image, a listing."""


@attrs.frozen(kw_only=True)
class Target:
    """
    What a name points at.

    `extension` is that of the original in the archive's URL, None where it was not learnt:
    thumbnails can be fetched without it, the original can't.
    """

    ref: ImageRef
    extension: str | None = None


@attrs.frozen(kw_only=True)
class Alias:
    """
    Where a name pointed when the archive was last asked.

    `checked_at` is the time of the question, not of the answer, in seconds since the epoch.
    """

    target: Target
    checked_at: float


@attrs.frozen(kw_only=True)
class FileEntry:
    """
    A file that is held.

    `media` is None for a listing. `stored_at` is when the archive was asked for it and the mtime
    of the file, so that a rebuild from the bare disk finds it again.
    """

    size_bytes: int
    stored_at: float
    media: MediaType | None = None


@attrs.frozen(kw_only=True)
class Absence:
    """
    A remembered 404, in seconds since the epoch.

    Fresh from `since` to `until`; from then on it is answered while the archive is asked again,
    for as long once more.
    """

    since: float
    until: float

    @property
    def forgotten(self) -> float:
        """When it is not worth answering any more."""
        return self.until + (self.until - self.since)


@attrs.frozen(kw_only=True)
class Found:
    """
    What the index knows about one request, read in one go.

    `key` and `entry` are the file to serve, where it is held; `alias` is set where the name is
    not the image's own; `target` is what the name is known to point at, fresh or not, even
    where no file of it is held: it saves asking hop 1 again.
    """

    key: FileKey | None = None
    entry: FileEntry | None = None
    alias: Alias | None = None
    target: Target | None = None
    absence: Absence | None = None
