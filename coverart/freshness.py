"""
Pure rules of time: what may be served as it is, what is served and refreshed, what must be fetched.

The vocabulary is RFC 9111's (fresh, stale); serving stale while refreshing and on error is
RFC 5861. `now` is always an argument, in seconds since the epoch.
"""

from __future__ import annotations

from enum import Enum

import attrs

from coverart.model import (
    Absence,
    Alias,
    AliasKey,
    FileEntry,
    Found,
    ImageKey,
    ImageRequest,
    Subject,
)

CLOCK_SLACK_S = 300.0
"""Largest tolerated clock difference between machines that share an index."""


def counted(at: float, now: float) -> float:
    """
    A time as it was written down; 0 if it lies further ahead of now than clocks may differ.

    A clock that was ahead wrote it: it never counts as fresh, nor as later than another.
    """
    return at if at <= now + CLOCK_SLACK_S else 0.0


class Verdict(Enum):
    """What to do about a request, given what the index knows."""

    HIT = "hit"
    """Serve what is held."""
    STALE = "stale"
    """Serve what is held, and ask the archive in the background."""
    ABSENT = "absent"
    """Answer the remembered 404."""
    ABSENT_STALE = "absent-stale"
    """Answer the remembered 404, and ask the archive in the background."""
    FETCH = "fetch"
    """Nothing to serve: ask the archive now."""


@attrs.frozen(kw_only=True)
class Lifetimes:
    """How long answers that may change count as fresh, in seconds (COVER_ART_…_TTL)."""

    alias_s: float = 86400
    listing_s: float = 86400
    absent_s: float = 3600
    absent_thumb_s: float = 300

    def absence(self, subject: Subject, asked_at: float) -> Absence:
        """What to remember of a 404 for `subject`, which was asked for then."""
        life = self.absent_thumb_s if isinstance(subject, ImageKey) else self.absent_s
        return Absence(since=asked_at, until=asked_at + life)


def alias_is_fresh(key: AliasKey, alias: Alias | None, now: float, lifetimes: Lifetimes) -> bool:
    """
    Say whether an alias may be served without asking the archive.

    An id keeps naming the same bytes after a merge, so an alias whose name is an id never ages.

    :param alias: None where the name is the image's own.
    """
    if alias is None or not key.ages:
        return True
    return now - counted(alias.checked_at, now) < lifetimes.alias_s


def judge_image(request: ImageRequest, found: Found, now: float, lifetimes: Lifetimes) -> Verdict:
    """Say how to answer a request for an image."""
    fresh = alias_is_fresh(request.alias, found.alias, now, lifetimes)
    if found.entry is not None:
        return Verdict.HIT if fresh else Verdict.STALE
    verdict = judge_absence(found.absence, now)
    # The 404 is of the image; whether the name still leads there is another question.
    return verdict if fresh or verdict is not Verdict.ABSENT else Verdict.ABSENT_STALE


def judge_listing(found: Found, now: float, lifetimes: Lifetimes) -> Verdict:
    """Say how to answer a request for a listing."""
    if found.entry is not None:
        fresh = listing_is_fresh(found.entry, now, lifetimes)
        return Verdict.HIT if fresh else Verdict.STALE
    return judge_absence(found.absence, now)


def listing_is_fresh(entry: FileEntry, now: float, lifetimes: Lifetimes) -> bool:
    """Say whether a listing may be served without asking the archive."""
    return now - counted(entry.stored_at, now) < lifetimes.listing_s


def judge_absence(absence: Absence | None, now: float) -> Verdict:
    """Say whether a remembered 404 is the answer where nothing is held."""
    if absence is None or not absence.since - CLOCK_SLACK_S <= now < absence.forgotten:
        return Verdict.FETCH
    return Verdict.ABSENT if now < absence.until else Verdict.ABSENT_STALE
