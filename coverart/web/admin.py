"""Taking things out of the cache by hand, for who holds the token."""

from __future__ import annotations

import hmac
from typing import Any

from klein import Klein
from twisted.python.failure import Failure

from coverart.cache.answers import Absent
from coverart.cache.operator_actions import OperatorActions
from coverart.errors import Refused
from coverart.web.access_log import LoggedRequest
from coverart.web.error_answers import explain
from coverart.web.headers import json_body
from coverart.web.operator_hosts import OwnNames


class AdminRoutes:
    """POST /admin/purge/… and /admin/refresh/…, with a path of the archive behind."""

    app = Klein()

    def __init__(self, actions: OperatorActions, token: str | None, names: OwnNames) -> None:
        self._actions = actions
        self._token = token
        self._names = names

    @app.route("/admin/purge/<path:_>")
    async def purge(self, request: LoggedRequest, _: str) -> bytes:
        """Forget a thing and remove its file: the next request fetches it."""
        self._check(request)
        return json_body(request, {"purged": await self._actions.purge(request.thing)})

    @app.route("/admin/refresh/<path:_>")
    async def refresh(self, request: LoggedRequest, _: str) -> bytes:
        """Ask the archive again now; what is held stays if it can't be asked."""
        self._check(request)
        answer = await self._actions.refresh(request.thing)
        return json_body(request, {"refreshed": not isinstance(answer, Absent)})

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """What could not be done, in the words of the contract."""
        return explain(request, failure)

    def _check(self, request: LoggedRequest) -> None:
        self._names.check(request)
        if self._token is None:
            raise Refused(403, "switched off: COVER_ART_ADMIN_TOKEN is not set")
        given = request.getHeader(b"authorization") or b""
        # Compared in constant time, so that answers do not tell how much of it was right.
        if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
            raise Refused(401, "wrong token", {b"www-authenticate": b'Bearer realm="coverart"'})
