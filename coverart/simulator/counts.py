"""What reached the hops, counted for tests to read."""

from collections import Counter, deque
from typing import Any

import attrs
from twisted.web.http_headers import Headers

_MAX_PATHS = 200_000
_RECENT = 500


@attrs.frozen(kw_only=True)
class Seen:
    """One request as it arrived."""

    hop: str
    method: str
    path: str
    headers: Headers

    def header(self, name: str) -> str | None:
        """Give a request header, or None."""
        values = self.headers.getRawHeaders(name)
        return values[0] if values else None


@attrs.define(eq=False)
class Connections:
    """How many TCP connections a hop has now, had at most at one time, and had in all."""

    current: int = 0
    peak: int = 0
    total: int = 0


class Counts:
    """
    What reached the hops: requests by hop and path, and connections.

    :ivar recent: the last few hundred requests with their headers, oldest first.
    """

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._paths: Counter[tuple[str, str]] = Counter()
        self._connections: dict[str, Connections] = {}
        self.recent: deque[Seen] = deque(maxlen=_RECENT)

    def saw(self, hop: str, method: str, path: str, headers: Headers) -> None:
        """Count a request."""
        self._requests[hop] += 1
        key = (hop, path)
        # A load test may ask for millions of different paths; the totals by hop stay exact.
        if len(self._paths) < _MAX_PATHS or key in self._paths:
            self._paths[key] += 1
        self.recent.append(Seen(hop=hop, method=method, path=path, headers=headers))

    def requests(self, hop: str | None = None, path: str | None = None) -> int:
        """
        Say how many requests came.

        :param hop: ``node`` means both nodes, None all hops.
        """
        if path is None:
            return sum(number for name, number in self._requests.items() if _within(hop, name))
        return sum(
            number
            for (name, asked), number in self._paths.items()
            if asked == path and _within(hop, name)
        )

    def connections(self, hop: str) -> Connections:
        """Give the connections of one hop; the object goes on counting."""
        return self._connections.setdefault(hop, Connections())

    def clear(self) -> None:
        """Begin again, keeping count of the connections that are open."""
        self._requests.clear()
        self._paths.clear()
        self.recent.clear()
        for connections in self._connections.values():
            connections.peak = connections.total = connections.current

    def as_json(self) -> dict[str, Any]:
        paths: dict[str, dict[str, int]] = {}
        for (hop, path), number in self._paths.items():
            paths.setdefault(hop, {})[path] = number
        return {
            "requests": dict(self._requests),
            "paths": paths,
            "connections": {hop: attrs.asdict(each) for hop, each in self._connections.items()},
        }


def _within(hop: str | None, name: str) -> bool:
    return hop is None or hop == name or (hop == "node" and name.startswith("node"))
