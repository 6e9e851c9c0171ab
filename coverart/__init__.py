"""
A self-hosted caching proxy for the MusicBrainz Cover Art Archive.

The path of one request: `web` takes the method and the path, `archive.paths` says what is asked,
`cache.lookup` looks in the `index` once and judges by `freshness`. A hit is a file in the `store`
and is sent. A miss joins the flight of that thing or starts one: `archive` follows the hops,
`cache.download` takes the bytes, `cache.writer` gives them their name, the index learns them. What is
stale is served at once and refreshed in the background. `maintenance` keeps the disk below its
limit and the index true; `service` starts, runs and stops it all.

A module imports only what stands above it here, or above it in its folder's own list:

    http_date       dates as headers carry them
    metrics         what is counted
    model           the words of the cache as frozen values: entities, keys, entries, aliases
    errors          what can go wrong, each with its status and what the operator reads
    freshness       what may be served, what is refreshed, what is fetched (pure)
    content         what is accepted as an image, by its first bytes
    archive/        the archive's language, and asking it
    coordination/   what processes have in common by Redis: the leader, one fetch among all
    index/          what is held, in memory or in Redis
    store/          the cache directory: where a file lies, how it comes and goes
    cache/          a hit, a miss, a refresh, a purge
    maintenance/    the sweep, the comparison of disk and index, the hit log
    web/            HTTP: requests and answers
    service/        settings, wiring, processes
    tap             what `twistd` calls
    cli/            the command `coverart`

`coverart.simulator` is an archive to try it against; it imports nothing from above.
"""

__version__ = "26.11.0"
