"""Hypothesis strategies for the cache's values, how many examples a property gets, how many stories a machine."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from coverart.model import (
    ORIGINAL,
    SIZES,
    Alias,
    AliasKey,
    Entity,
    FileEntry,
    ImageKey,
    ImageRef,
    ImageRequest,
    ListingKey,
    MediaType,
    Subject,
    Target,
)


def examples(count: int, **more: Any) -> Callable[[Any], Any]:
    """
    So many examples, without a deadline: a busy machine is no failure.

    A TestCase's setUp runs once for all of them, so a property must not change what it made.
    """
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=quiet, **more)


def stories(count: int) -> settings:
    """
    So many stories of a state machine, of up to 25 steps, the same each time.

    `python -m bench.machine` tells new ones, and finds the shortest that fails: that takes minutes.
    """
    return settings(
        max_examples=count,
        stateful_step_count=25,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


MBID = "353710ec-1509-4df9-8ce2-9bd5011e3b80"
OTHER_MBID = "76df3287-6cda-33eb-8e9a-044b5e15ffdd"

mbids = st.uuids().map(str)
ids = st.one_of(st.integers(1, 50), st.integers(1, 10**18 - 1))
sizes = st.sampled_from((ORIGINAL, *SIZES))
extensions = st.sampled_from((None, "jpg", "png", "gif", "pdf"))
times = st.floats(0, 2.0**33, allow_nan=False)

_owners = st.sampled_from((Entity.RELEASE, Entity.EVENT))


def image_refs(mbid: st.SearchStrategy[str] = mbids) -> st.SearchStrategy[ImageRef]:
    """Images of releases and events."""
    return st.builds(ImageRef, owner=_owners, mbid=mbid, image_id=ids)


def image_keys(mbid: st.SearchStrategy[str] = mbids) -> st.SearchStrategy[ImageKey]:
    """Single files of images."""
    return st.builds(ImageKey, ref=image_refs(mbid), size=sizes)


def alias_keys(mbid: st.SearchStrategy[str] = mbids) -> st.SearchStrategy[AliasKey]:
    """Every name that an entity can have."""
    names = {
        Entity.RELEASE: st.one_of(st.sampled_from(("front", "back")), ids),
        Entity.RELEASE_GROUP: st.just("front"),
        Entity.EVENT: st.one_of(st.just("front"), ids),
    }
    return st.one_of(
        *(
            st.builds(AliasKey, entity=st.just(entity), mbid=mbid, name=name)
            for entity, name in names.items()
        )
    )


def listing_keys(mbid: st.SearchStrategy[str] = mbids) -> st.SearchStrategy[ListingKey]:
    """Listings of every entity."""
    return st.builds(ListingKey, entity=st.sampled_from(Entity), mbid=mbid)


def image_requests(mbid: st.SearchStrategy[str] = mbids) -> st.SearchStrategy[ImageRequest]:
    """Requests for images, in every size."""
    return st.builds(ImageRequest, alias=alias_keys(mbid), size=sizes)


def things(
    mbid: st.SearchStrategy[str] = mbids,
) -> st.SearchStrategy[ImageRequest | ListingKey]:
    """Whatever a path can ask for."""
    return st.one_of(image_requests(mbid), listing_keys(mbid))


def subjects(mbid: st.SearchStrategy[str] = mbids) -> st.SearchStrategy[Subject]:
    """Whatever can be absent."""
    return st.one_of(alias_keys(mbid), image_keys(mbid), listing_keys(mbid))


targets = st.builds(Target, ref=image_refs(), extension=extensions)
aliases = st.builds(Alias, target=targets, checked_at=times)
entries = st.builds(
    FileEntry,
    size_bytes=st.integers(1, 2**32 - 1),
    stored_at=times,
    media=st.one_of(st.none(), st.sampled_from(MediaType)),
)
