"""Places where requests wait for a test, and a test for requests: nobody has to sleep."""

from typing import Any

from twisted.internet.defer import Deferred


class Gates:
    """
    Places where requests are held until a test lets them go.

    A gate comes into being, shut, when it is first named; once open it lets everyone through until
    it is shut again.
    """

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._held: dict[str, list[Deferred[None]]] = {}
        self._watchers: dict[str, list[tuple[int, Deferred[int]]]] = {}

    def wait(self, name: str) -> Deferred[None]:
        """Give a Deferred that fires when the gate opens; cancel it to leave the queue."""
        waiting: Deferred[None] = Deferred(lambda gone: self._leave(name, gone))
        if name in self._open:
            waiting.callback(None)
            return waiting
        self._held.setdefault(name, []).append(waiting)
        for watched in list(self._watchers.get(name, ())):
            count, watcher = watched
            if self.waiting(name) >= count:
                self._watchers[name].remove(watched)
                watcher.callback(self.waiting(name))
        return waiting

    def _leave(self, name: str, waiting: Deferred[None]) -> None:
        held = self._held.get(name, [])
        self._held[name] = [other for other in held if other is not waiting]

    def waiting(self, name: str) -> int:
        """Say how many requests are held at a gate."""
        return len(self._held.get(name, ()))

    def reached(self, name: str, count: int = 1) -> Deferred[int]:
        """Give a Deferred that fires once that many requests are held at a gate at one time."""
        watcher: Deferred[int] = Deferred(lambda gone: self._unwatch(name, gone))
        if self.waiting(name) >= count:
            watcher.callback(self.waiting(name))
        else:
            self._watchers.setdefault(name, []).append((count, watcher))
        return watcher

    def _unwatch(self, name: str, gone: Deferred[int]) -> None:
        watched = self._watchers.get(name, [])
        self._watchers[name] = [pair for pair in watched if pair[1] is not gone]

    def open(self, name: str) -> int:
        """Open a gate for good and say how many requests were held at it."""
        self._open.add(name)
        return self.release(name)

    def release(self, name: str, count: int | None = None) -> int:
        """Let those through that are held now (the first `count`), and leave the gate shut."""
        held = self._held.pop(name, [])
        going, staying = (held, []) if count is None else (held[:count], held[count:])
        if staying:
            self._held[name] = staying
        for waiting in going:
            waiting.callback(None)
        return len(going)

    def close(self, name: str) -> None:
        """Shut a gate again."""
        self._open.discard(name)

    def clear(self) -> None:
        """Let everyone through and forget all gates."""
        for name in list(self._held):
            self.release(name)
        self._open.clear()

    def as_json(self) -> dict[str, dict[str, Any]]:
        names = sorted(self._open | {name for name, held in self._held.items() if held})
        return {n: {"open": n in self._open, "waiting": self.waiting(n)} for n in names}
