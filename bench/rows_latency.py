"""Time to the first byte, against following the archive's redirects oneself."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Callable

from bench.chain import first_byte_s, whole
from bench.processes import LOCAL, VARIANTS, Archive, Bench
from bench.table import Figure, Goal, Pair, Row, interleaved

HOP_S = 0.1
SAMPLES = 3
"""In one round, of which the median counts."""
LARGE_BYTES = 5_000_000
DRIP_BYTES_PER_S = 1_000_000


def warm(archive: Archive, size: int) -> None:
    """Have every drawing of a size drawn, so that nobody waits for the artist."""
    for mbid in archive.releases(8 * VARIANTS):
        first_byte_s(f"http://{LOCAL}:{archive.ports['release']}/release/{mbid}/front-{size}")


def _median_ms(sample: Callable[[], float]) -> Figure:
    return Figure(value=1000 * statistics.median(sample() for _ in range(SAMPLES)))


def second_size(bench: Bench) -> list[Pair]:
    """A cover is held in one size; how long until another one starts, 100 ms a hop."""
    archive = bench.archive()
    archive.rules()
    warm(archive, 250)
    warm(archive, 500)
    archive.rules({"hop": "*", "does": {"kind": "latency", "seconds": HOP_S}})
    direct = f"http://{LOCAL}:{archive.ports['release']}"
    with bench.proxy() as (_, port):
        proxied = f"http://{LOCAL}:{port}"

        def reference() -> float:
            (mbid,) = archive.releases(1)
            return first_byte_s(f"{direct}/release/{mbid}/front-500")

        def coverart() -> float:
            (mbid,) = archive.releases(1)
            whole(f"{proxied}/release/{mbid}/front-250")
            return first_byte_s(f"{proxied}/release/{mbid}/front-500")

        coverart()
        return interleaved(
            bench.rounds, lambda: _median_ms(reference), lambda: _median_ms(coverart)
        )


def _large(bench: Bench, hop_s: float) -> list[Pair]:
    archive = bench.archive()
    cover = b"\xff\xd8\xff\xe0" + bytes(LARGE_BYTES - 4)
    slowly = [
        {"kind": "body", "data": base64.b64encode(cover).decode()},
        {"kind": "drip", "bytes_per_s": DRIP_BYTES_PER_S},
    ]
    later = {"hop": "*", "does": {"kind": "latency", "seconds": hop_s}}
    archive.rules({"hop": "node", "does": slowly}, *([later] if hop_s else []))
    direct = f"http://{LOCAL}:{archive.ports['release']}"
    # A client that leaves ends no fetch, and each goes on for seconds: there must be room.
    with bench.proxy(COVER_ART_UPSTREAM_CONCURRENCY="1000") as (_, port):
        proxied = f"http://{LOCAL}:{port}"

        def sample(base: str) -> float:
            (mbid,) = archive.releases(1)
            return first_byte_s(f"{base}/release/{mbid}/front")

        sample(proxied)
        pairs = interleaved(
            bench.rounds,
            lambda: _median_ms(lambda: sample(direct)),
            lambda: _median_ms(lambda: sample(proxied)),
        )
    archive.rules()
    return pairs


def large(bench: Bench) -> list[Pair]:
    """The first byte of a large original that arrives slowly, 100 ms a hop."""
    return _large(bench, HOP_S)


def large_at_once(bench: Bench) -> list[Pair]:
    """The same without latency: what the proxy itself adds, in milliseconds."""
    return _large(bench, 0)


ROWS = (
    Row(
        name="second-size",
        what="first byte of a second size, 100 ms a hop",
        reference="redirect chain",
        unit="ms",
        goal=Goal(bound=0.45, at_most=True),
        measure=second_size,
    ),
    Row(
        name="large",
        what="first byte of a cold 5 MB original at 1 MB/s, 100 ms a hop",
        reference="redirect chain",
        unit="ms",
        goal=Goal(bound=1.05, at_most=True),
        measure=large,
    ),
    Row(
        name="large-at-once",
        what="the same without latency",
        reference="redirect chain",
        unit="ms",
        goal=None,
        measure=large_at_once,
    ),
)
