"""
What the simulated archive holds: releases, release groups, events, merges and their images.

Nothing is stored: every value follows from the seed and an index, and an MBID can be read back
into its index (see `scramble`), so a catalogue of ten million costs no more than one of ten.  Only
the changes made while it runs (another front, art removed or added, a merge) are remembered.
"""

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Literal

import attrs

from coverart.simulator.scramble import Scramble

Entity = Literal["release", "release-group", "event"]
Extension = Literal["jpg", "png", "gif", "pdf"]
THUMBNAIL_SIZES = (250, 500, 1200)

_RELEASE, _GROUP, _EVENT, _MERGED = range(4)
_KINDS: dict[Entity, int] = {"release": _RELEASE, "release-group": _GROUP, "event": _EVENT}
_POSITIONS = 64  # images an item can have; later additions take the upper half
_ADDED_FROM = 32
_RELEASES_PER_GROUP = 2
MIN_RELEASES = 20
MAX_RELEASES = 2**28

# The first releases have fixed parts to play, so that every catalogue has one example of each.
_CAST = (
    "jpeg",
    "png",
    "gif",
    "animated",
    "pdf",
    "no_art",
    "no_front",
    "no_back",
    "many_images",
    "old_listing",
    "underived_thumb",
    "large_original",
)


@attrs.frozen(kw_only=True)
class Image:
    """
    One upload: an original and its thumbnails, none of which ever changes.

    :ivar ext: extension of the original; thumbnails are always JPEG.
    :ivar width: pixels of the original (of one page or frame).
    :ivar weight: how heavy the original is: ``usual`` is 0.2 to 2 MB, ``large`` several MB.
    :ivar underived: thumbnail sizes that the archive has not made yet.
    :ivar uploaded: seconds since the epoch.
    """

    id: int
    types: tuple[str, ...]
    front: bool
    back: bool
    ext: Extension
    animated: bool
    comment: str
    approved: bool
    edit: int
    width: int
    height: int
    weight: Literal["usual", "large"]
    underived: tuple[int, ...]
    uploaded: int


@attrs.frozen(kw_only=True)
class Item:
    """
    A release or an event and its images: one item of archive.org, ``mbid-{mbid}``.

    :ivar old_listing: its index.json dates from the archive's first years.
    :ivar revision: how often it was changed while the simulator ran.
    """

    entity: Literal["release", "event"]
    index: int
    mbid: str
    images: tuple[Image, ...]
    old_listing: bool
    revision: int = 0

    @property
    def front(self) -> Image | None:
        """The image that answers for ``front``."""
        return next((image for image in self.images if image.front), None)

    @property
    def back(self) -> Image | None:
        """The image that answers for ``back``; an event has none."""
        if self.entity == "event":
            return None
        return next((image for image in self.images if image.back), None)

    def image(self, image_id: int) -> Image | None:
        return next((image for image in self.images if image.id == image_id), None)


@attrs.frozen(kw_only=True)
class ReleaseGroup:
    """A group of releases; it borrows the art of the first that has a front."""

    index: int
    mbid: str
    releases: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Merged:
    """An MBID that was merged into another: asking for it gives the other one's art."""

    index: int
    mbid: str
    into: str


class Catalogue:
    """
    The art of `releases` releases, half as many groups, and some events and merged MBIDs.

    :param seed: another seed is another archive, with not one MBID in common.
    :param without_art: share of the releases and events that nobody has uploaded art for.
    :raises ValueError: a number is out of range.
    """

    def __init__(self, seed: int = 0, releases: int = 1000, *, without_art: float = 0.2) -> None:
        if not MIN_RELEASES <= releases <= MAX_RELEASES:
            raise ValueError(f"releases must be between {MIN_RELEASES} and {MAX_RELEASES}")
        if not 0 <= without_art <= 1:
            raise ValueError("without_art must be between 0 and 1")
        self.seed = seed
        self.releases = releases
        self.release_groups = -(-releases // _RELEASES_PER_GROUP)
        self.events = max(10, releases // 10)
        self.merges = max(10, releases // 20)
        self.without_art = without_art
        self._scramble = Scramble(blake2b(str(seed).encode(), digest_size=32).digest())
        self._changed: dict[str, Item] = {}
        self._merged: dict[str, str] = {}
        self._chosen: dict[str, str] = {}
        self._added: dict[str, int] = {}
        # Busy tests and benchmarks come back to the same few; the bound keeps a million small.
        self._derived = lru_cache(maxsize=8192)(self._derive)

    # What there is, by index

    def release(self, index: int) -> Item:
        """
        Give a release as it is now.

        :raises IndexError: there are not that many.
        """
        return self._item(_RELEASE, self._within(index, self.releases))

    def event(self, index: int) -> Item:
        """
        Give an event as it is now.

        :raises IndexError: there are not that many.
        """
        return self._item(_EVENT, self._within(index, self.events))

    def release_group(self, index: int) -> ReleaseGroup:
        """
        Give a release group.

        :raises IndexError: there are not that many.
        """
        first = self._within(index, self.release_groups) * _RELEASES_PER_GROUP
        members = range(first, min(first + _RELEASES_PER_GROUP, self.releases))
        return ReleaseGroup(
            index=index,
            mbid=self._scramble.mbid(_GROUP, index),
            releases=tuple(self._scramble.mbid(_RELEASE, member) for member in members),
        )

    def merged(self, index: int) -> Merged:
        """
        Give an MBID that was merged into a release before the catalogue began.

        :raises IndexError: there are not that many.
        """
        self._within(index, self.merges)
        dice = int.from_bytes(self._scramble.dice(_MERGED, index)[:8], "big")
        into = 0 if index == 0 else dice % self.releases
        return Merged(
            index=index,
            mbid=self._scramble.mbid(_MERGED, index),
            into=self._scramble.mbid(_RELEASE, into),
        )

    @staticmethod
    def _within(index: int, count: int) -> int:
        if not 0 <= index < count:
            raise IndexError(f"{index} is not between 0 and {count - 1}")
        return index

    # What a name stands for

    def find(self, entity: Entity, mbid: str) -> Item | None:
        """
        Find the item whose art an MBID of that entity shows, following merges and groups.

        None if there is no such thing, or if it is a group without any front.  An item without
        images is one that nobody has uploaded art for.
        """
        mbid = self._merged.get(mbid, mbid)
        read = self._scramble.read_mbid(mbid)
        if read is None:
            return None
        kind, index = read
        if kind == _MERGED and entity == "release" and index < self.merges:
            into = self.merged(index).into
            return self.find("release", into)
        if kind != _KINDS[entity]:
            return None
        if kind == _GROUP:
            return self._choice(self.release_group(index)) if index < self.release_groups else None
        if index >= (self.releases if kind == _RELEASE else self.events):
            return None
        return self._item(kind, index)

    def item(self, mbid: str) -> Item | None:
        """
        Find the item of archive.org with that very MBID, if it has any art.

        Merged MBIDs have no item: their files moved to the release they were merged into.
        """
        if mbid in self._merged:
            return None
        read = self._scramble.read_mbid(mbid)
        if read is None:
            return None
        kind, index = read
        if index >= {_RELEASE: self.releases, _EVENT: self.events}.get(kind, 0):
            return None
        item = self._item(kind, index)
        return item if item.images else None

    def _choice(self, group: ReleaseGroup) -> Item | None:
        chosen = self._chosen.get(group.mbid)
        for mbid in (*((chosen,) if chosen else ()), *group.releases):
            release = self.find("release", mbid)
            if release is not None and release.front is not None:
                return release
        return None

    # Changes made while it runs

    def set_front(self, mbid: str, image_id: int) -> None:
        """
        Make another image of an item its front.

        :raises LookupError: no such item, or it has no such image.
        """
        item = self._live(mbid)
        if item.image(image_id) is None:
            raise LookupError(f"{mbid} has no image {image_id}")
        self._change(
            item, tuple(attrs.evolve(image, front=image.id == image_id) for image in item.images)
        )

    def remove_art(self, mbid: str) -> None:
        """
        Take all images from an item.

        :raises LookupError: no such item.
        """
        self._change(self._live(mbid), ())

    def add_art(self, mbid: str, *, front: bool = True) -> Image:
        """
        Upload one more image to an item and give it back; as its front, unless told otherwise.

        :raises LookupError: no such item.
        :raises ValueError: it has no room for more.
        """
        item = self._live(mbid)
        position = self._added.get(mbid, _ADDED_FROM)
        if position >= _POSITIONS:
            raise ValueError(f"{mbid} cannot take more images")
        self._added[mbid] = position + 1
        kind = _KINDS[item.entity]
        added = self._image(
            kind, item.index, position, "jpg", types=("Front",) if front else ("Other",)
        )
        rest = item.images
        if front:
            rest = tuple(attrs.evolve(image, front=False) for image in rest)
        self._change(item, (added, *rest))
        return added

    def derive(self, mbid: str) -> None:
        """
        Let the archive make the thumbnails of an item that were missing.

        :raises LookupError: no such item.
        """
        item = self._live(mbid)
        self._change(item, tuple(attrs.evolve(image, underived=()) for image in item.images))

    def merge(self, old: str, new: str) -> None:
        """
        Merge a release into another: its images move there, with their ids.

        :raises LookupError: one of them is not a release of this catalogue, or they are the same.
        """
        gone, stays = self._live(old), self._live(new)
        if gone.mbid == stays.mbid or gone.entity != stays.entity:
            raise LookupError("a merge needs two different items of one entity")
        moved = gone.images
        if stays.front is not None:
            moved = tuple(attrs.evolve(image, front=False) for image in moved)
        self._change(stays, (*stays.images, *moved))
        self._change(gone, ())
        # An earlier merge into the one that goes now leads to the one that stays.
        for name, into in list(self._merged.items()):
            if into == gone.mbid:
                self._merged[name] = stays.mbid
        self._merged[gone.mbid] = stays.mbid

    def choose(self, group: str, release: str) -> None:
        """
        Let a release group show the art of another release.

        :raises LookupError: there is no such group, or no such release.
        """
        read = self._scramble.read_mbid(group)
        if read is None or read[0] != _GROUP or read[1] >= self.release_groups:
            raise LookupError(f"no release group {group}")
        self._chosen[group] = self._live(release).mbid

    def reset(self) -> None:
        """Forget all changes."""
        self._changed.clear()
        self._merged.clear()
        self._chosen.clear()
        self._added.clear()

    def _live(self, mbid: str) -> Item:
        item = self.find("release", mbid) or self.find("event", mbid)
        if item is None:
            raise LookupError(f"no release or event {mbid}")
        return item

    def _change(self, item: Item, images: tuple[Image, ...]) -> None:
        self._changed[item.mbid] = attrs.evolve(item, images=images, revision=item.revision + 1)

    # Examples

    def examples(self) -> dict[str, str]:
        """Give a path for each kind of thing a client may meet, by the name of the kind."""
        cast = {name: self.release(index) for index, name in enumerate(_CAST)}
        front = {name: f"/release/{release.mbid}/front" for name, release in cast.items()}
        return {
            **front,
            "listing": f"/release/{cast['jpeg'].mbid}/",
            "thumbnail": f"{front['jpeg']}-250",
            "back": f"/release/{cast['jpeg'].mbid}/back",
            "old_listing": f"/release/{cast['old_listing'].mbid}/",
            "many_images": f"/release/{cast['many_images'].mbid}/",
            "no_back": f"/release/{cast['no_back'].mbid}/back",
            "underived_thumb": f"{front['underived_thumb']}-1200",
            "merged": f"/release/{self.merged(0).mbid}/front",
            "group": f"/release-group/{self.release_group(0).mbid}/front",
            "event": f"/event/{self.event(0).mbid}/front",
            "unknown": f"/release/{self._scramble.mbid(_RELEASE, 2**32 - 1)}/front",
        }

    def walk(self, entity: Entity, start: int = 0, count: int | None = None) -> Iterator[str]:
        """Give the MBIDs of an entity in their order, for load generators."""
        total = {
            "release": self.releases,
            "release-group": self.release_groups,
            "event": self.events,
        }[entity]
        stop = total if count is None else min(total, start + count)
        return (self._scramble.mbid(_KINDS[entity], index) for index in range(start, stop))

    # How an item follows from the seed

    def _item(self, kind: int, index: int) -> Item:
        derived = self._derived(kind, index)
        return self._changed.get(derived.mbid, derived) if self._changed else derived

    def _derive(self, kind: int, index: int) -> Item:
        dice = self._scramble.dice(kind, index)
        part = ""
        if kind == _RELEASE and index < len(_CAST):
            part = _CAST[index]
        elif kind == _EVENT and index == 0:
            part = "jpeg"
        elif int.from_bytes(dice[:4], "big") < self.without_art * 2**32:
            part = "no_art"
        return Item(
            entity="release" if kind == _RELEASE else "event",
            index=index,
            mbid=self._scramble.mbid(kind, index),
            images=() if part == "no_art" else self._images(kind, index, part, dice),
            old_listing=part == "old_listing" or (not part and dice[4] < 25),
        )

    def _images(self, kind: int, index: int, part: str, dice: bytes) -> tuple[Image, ...]:
        types: list[tuple[str, ...]] = []
        if part != "no_front" and (part or dice[5] >= 12):
            types.append(("Front",))
        if kind == _RELEASE and part != "no_back" and (part or dice[6] < 150):
            types.append(("Back", "Spine") if dice[7] < 50 else ("Back",))
        more = (0, 0, 0, 1, 1, 2, 4, 12)[dice[8] % 8] if not part else 0
        if part == "many_images":
            more = 12
        if part == "pdf" or not types:
            more = max(more, 1)
        extra = (("Medium",), ("Booklet",), ("Tray",), ("Obi",), ("Sticker",), ("Other",))
        types += [extra[(dice[9] + place) % len(extra)] for place in range(more)]
        return tuple(
            self._image(
                kind, index, position, self._extension(part, dice, position), types=names, part=part
            )
            for position, names in enumerate(types)
        )

    @staticmethod
    def _extension(part: str, dice: bytes, position: int) -> Extension:
        if part in {"png", "gif", "pdf"} and position == 0:
            return "png" if part == "png" else "gif" if part == "gif" else "pdf"
        if part == "animated":
            return "gif"
        if part:
            return "jpg"
        roll = dice[16 + position]
        return "png" if roll < 22 else "gif" if roll < 27 else "pdf" if roll < 32 else "jpg"

    def _image(
        self,
        kind: int,
        index: int,
        position: int,
        ext: Extension,
        *,
        types: tuple[str, ...],
        part: str = "",
    ) -> Image:
        dice = self._scramble.dice(kind, index, position)
        large = ext == "jpg" and (part == "large_original" or (not part and dice[0] < 8))
        width = _WIDTHS[ext][dice[1] % 4] + 2 * dice[2]
        if large:
            width = 2800 + 2 * dice[2]
        height = width if dice[3] < 200 else width * (230 + dice[4] % 24) // 256
        underived: tuple[int, ...] = ()
        if part == "underived_thumb":
            underived = (1200,)
        elif not part and dice[5] == 0:
            underived = THUMBNAIL_SIZES
        # Kind and index take thirty bits, the position six: `Scramble.image_id` allows that much.
        number = ((1 if kind == _EVENT else 0) << 29 | index) * _POSITIONS + position
        return Image(
            id=self._scramble.image_id(number),
            types=types,
            front="Front" in types,
            back="Back" in types,
            ext=ext,
            animated=ext == "gif" and (part == "animated" or dice[6] < 64),
            comment="" if dice[7] < 220 else f"scan no. {dice[8]}",
            approved=dice[9] < 240,
            edit=10_000_000 + int.from_bytes(dice[10:14], "big") % 100_000_000,
            width=width,
            height=height,
            weight="large" if large else "usual",
            underived=underived,
            uploaded=1_336_000_000 + int.from_bytes(dice[14:18], "big") % 430_000_000,
        )


# Pixels of originals, before a few more by chance: about what makes 0.2 to 2 MB of each kind.
_WIDTHS: dict[Extension, tuple[int, int, int, int]] = {
    "jpg": (1200, 1200, 1400, 1500),
    "png": (700, 800, 900, 1000),
    "gif": (600, 600, 640, 700),
    "pdf": (1200, 1200, 1300, 1400),
}
