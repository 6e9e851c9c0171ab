"""What the cache holds and did, as one document: of the running service and of the command line."""

from __future__ import annotations

from typing import Any

from coverart.index.base import Index, Totals
from coverart.metrics import DIRECT_HITS, TALLIED
from coverart.model import MEGABYTE, Entity


def describe(
    totals: Totals,
    index: Index,
    *,
    status: str,
    cache_dir: str,
    limit_bytes: int,
    rebuilding: bool | None = None,
) -> dict[str, Any]:
    """
    The fields of /cache-status.

    :param rebuilding: whether the index is still being filled; None where that can't be told.
    """
    group = Entity.RELEASE_GROUP
    counts = {name: totals.tallies.get(name, 0) for name in TALLIED}
    counts["hits"] += counts[DIRECT_HITS]
    return {
        "status": status,
        "cached_files": totals.files,
        # Groups own no images: what lies in their folders is listings and links.
        "release_files": totals.by_entity.get(Entity.RELEASE, 0),
        "release_group_files": totals.by_entity.get(group, 0) + totals.aliases.get(group, 0),
        "event_files": totals.by_entity.get(Entity.EVENT, 0),
        "aliases": sum(totals.aliases.values()),
        "absences": totals.absences,
        "cache_size_bytes": totals.size_bytes,
        "cache_size_mb": round(totals.size_bytes / MEGABYTE, 2),
        "cache_limit_mb": round(limit_bytes / MEGABYTE, 2),
        "cache_usage_percent": round(100 * totals.size_bytes / limit_bytes, 2),
        "cache_dir": cache_dir,
        "cache_index_type": index.kind,
        "redis_available": index.kind == "redis" and index.available,
        **({} if rebuilding is None else {"rebuilding": rebuilding}),
        **counts,
        "leader": totals.leader,
        "oldest": totals.oldest,
    }
