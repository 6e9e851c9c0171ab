"""
Which size answers in place of one that the archive has not made (pure).

The archive makes thumbnails some time after an upload, and of some images it never made all. A size
that is missing while its image is there is answered with a larger one, and only until the archive
has it: nothing is stored under the name of the missing size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import attrs

from coverart.freshness import Verdict, judge_absence
from coverart.model import (
    ORIGINAL,
    SIZES,
    Found,
    ImageKey,
    ImageRequest,
    MediaType,
    Thing,
)

MOST_RULED_OUT = 10_000
"""Limit of originals that are remembered as too large; the first is forgotten first."""


@attrs.define(eq=False, kw_only=True)
class Substitutes:
    """
    Larger sizes of the same image, as the archive has them.

    What is held is taken before the archive is asked for anything, the smallest first; then the
    archive is asked, in the same order. An original is the last choice, and only one that is small
    enough and no PDF.
    """

    most_bytes: int = 0
    """Of an original; 0: nothing stands in for anything."""
    _ruled_out: OrderedDict[ImageKey, None] = attrs.field(factory=OrderedDict, init=False)

    def may(self, thing: Thing) -> bool:
        """Say whether anything may stand in for a thing at all."""
        return self.most_bytes > 0 and isinstance(thing, ImageRequest) and thing.size != ORIGINAL

    def larger(self, thing: Thing) -> Sequence[ImageRequest]:
        """What may stand in for a thing, the smallest first."""
        if not self.may(thing) or not isinstance(thing, ImageRequest):
            return ()
        return [ImageRequest(alias=thing.alias, size=size) for size in _LARGER[thing.size]]

    def choose(
        self, missing: ImageKey, larger: Sequence[tuple[ImageRequest, Found]], now: float
    ) -> Sequence[tuple[ImageRequest, Found]]:
        """
        What to try, in this order, until something is there.

        :param larger: what larger() gave, with what is known of each.
        """
        held, to_ask = [], []
        for request, found in larger:
            if found.entry is not None:
                if self.suits(request.size, found.entry.size_bytes, found.entry.media):
                    held.append((request, found))
            elif judge_absence(found.absence, now) is Verdict.FETCH and (
                request.size != ORIGINAL or not self._is_ruled_out(missing, found)
            ):
                to_ask.append((request, found))
        return held + to_ask

    def suits(self, size: int, size_bytes: int | None, media: MediaType | None) -> bool:
        """
        Say whether a file may stand in.

        :param size_bytes: None where the archive does not declare it: only a download could tell.
        :param media: None where its first bytes have not come yet.
        """
        if size != ORIGINAL:
            return True
        small = size_bytes is not None and size_bytes <= self.most_bytes
        return small and media is not MediaType.PDF

    def rule_out(self, missing: ImageKey) -> None:
        """The image's original does not suit, and never will: its bytes do not change."""
        self._ruled_out[missing.ref.at(ORIGINAL)] = None
        if len(self._ruled_out) > MOST_RULED_OUT:
            self._ruled_out.popitem(last=False)

    def _is_ruled_out(self, missing: ImageKey, original: Found) -> bool:
        target = original.target
        is_pdf = target is not None and target.extension == MediaType.PDF.extension
        return is_pdf or missing.ref.at(ORIGINAL) in self._ruled_out


_LARGER: dict[int, tuple[int, ...]] = {
    ORIGINAL: (),
    **{size: (*sorted(s for s in SIZES if s > size), ORIGINAL) for size in SIZES},
}
