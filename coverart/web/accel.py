"""
Lets nginx send a file in our place, by X-Accel-Redirect.

https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_ignore_headers
"""

from __future__ import annotations

from twisted.web.http import Request


def send_by_nginx(request: Request, prefix: str | None, path: str) -> bool:
    """
    Tell nginx which file to send.

    :param prefix: of its internal location; None: there is no nginx.
    :param path: of the file, below the cache directory.
    :returns: False if this process has to send it.
    """
    # A range is decided here: nginx would take one in a HEAD request, which is for GET alone,
    # and adds what it says of the file to a 416.
    if prefix is None or request.method != b"GET" or request.getHeader(b"range") is not None:
        return False
    request.setHeader(b"x-accel-redirect", f"{prefix}{path}".encode())
    return True
