"""Exit 0 if the app in this container is ready for clients, else say why not and exit 1."""

from __future__ import annotations

import os
import re
import sys
from http.client import HTTPConnection, HTTPException


def main() -> int:
    """Ask /ready on the first TCP port that the app listens on."""
    listen = os.environ.get("COVER_ART_LISTEN") or "tcp:8080"
    port = re.search(r"tcp:(?:port=)?([0-9]+)", listen)
    if port is None:
        print(f"no TCP port in COVER_ART_LISTEN={listen}")
        return 1
    connection = HTTPConnection("127.0.0.1", int(port[1]), timeout=4)
    try:
        connection.request("GET", "/ready")
        response = connection.getresponse()
        said = response.read(1000).decode(errors="replace")
    except (OSError, HTTPException) as error:
        print(error)
        return 1
    print(response.status, said)
    return 0 if response.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
