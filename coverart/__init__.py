"""
A self-hosted caching proxy for the MusicBrainz Cover Art Archive.

The path of one request: `site` takes the method and the path, `request_path` makes it canonical,
`web` asks `cache`. The cache reads the `index` once, `freshness` judges: a hit is checked against
the file in `store` and sent. A miss joins the `flight` of that request or starts one: `fetch`
looks on the disk, asks `upstream` where the name points and for the image, hop by hop under the
rules of `redirects`; the bytes go through `incoming` to a temporary file and, if large, to those
who wait; checked, fsynced, renamed; then the index learns it and the alias is linked, unless it
knows what the archive was asked for later. Where `room` finds none on the disk, or the disk fails,
those who wait get the bytes and nothing is stored. What is stale is served at once and refreshed
in the background.

Imports go one way; no module imports one further down:

    errors, model, metrics, http_date               the words, and what is counted
    request_path, layout, content, listing,         pure rules
        freshness, packing, names, redirects,
        breaker, conditions, eviction,
        redis_address, host_names, setting_values,
        config
    flight, turns, index, index_memory, directory,  what is held, and what is on its way
        untold, links, store, rebuild, room, incoming,
        hitlog, tallies, status
    gathered, redis_link, redis_scripts,            what several processes share
        index_redis, leases
    transfer, wire, connect, client, upstream       asking the archive
    fetch, answers, cache                           the cache itself
    reconcile, cleanup, scan, intake                keeping it small and true
    access, sending, responses, channel,            HTTP
        public_listings, web, hits, operations,
        admin, reception, listening, site
    service, assembly                               the running process
    processes, worker, tap                          one of them, or several behind one port
    tables, command, cli                            the command line beside it

`coverart.simulator` is an archive to try it against; it imports nothing from above.
"""

__version__ = "26.11.0"
