"""Answers for musicbrainz.org what some clients ask there before they ask for a cover."""

from __future__ import annotations

import json
import re
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ARTIST = {"id": "0383dadf-2a4e-4d10-a46a-e9e041da8eb3", "name": "The Artist"}
TRACK = "5d1bc8b1-8d0b-3d35-8c0e-0f0b6a9a3c11"
RECORDING = "0d8b1f3e-9a4b-4a33-9b2c-6f8d3a1f7c22"


class MusicBrainz:
    """Knows one release group; any release it is asked for is one of the group's."""

    def __init__(self, group: str) -> None:
        self._group = group

    def listen(self, address: str, certificate: Path) -> None:
        """Listen on ports 80 and 443 of an address."""
        stub = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                content_type, text = stub.answer(self.path, self.headers.get("Accept", ""))
                body = text.encode()
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Requests are not logged: covers are what is watched."""

        plain = ThreadingHTTPServer((address, 80), Answering)
        secure = ThreadingHTTPServer((address, 443), Answering)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        for server in (plain, secure):
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def answer(self, path: str, accept: str) -> tuple[str, str]:
        """:returns: content type and body."""
        lookup = re.search(r"/ws/2/release/([0-9a-f-]{36})", path)
        if lookup and "fmt=json" not in path and "json" not in accept:
            text = (
                '<?xml version="1.0"?><metadata xmlns="http://musicbrainz.org/ns/mmd-2.0#">'
                f'<release id="{lookup[1]}"><artist-credit><name-credit>'
                f'<artist id="{ARTIST["id"]}"/></name-credit></artist-credit></release></metadata>'
            )
            return "application/xml; charset=utf-8", text
        told: dict[str, Any]
        if lookup:
            told = self._release(lookup[1])
        elif "/release-group" in path:
            told = {"release-groups": [{**self._release_group(), "score": 100}]}
        else:
            told = {}
        return "application/json; charset=utf-8", json.dumps(told)

    def _credit(self) -> list[dict[str, Any]]:
        artist = {**ARTIST, "sort-name": "Artist, The", "disambiguation": ""}
        return [{"name": ARTIST["name"], "joinphrase": "", "artist": artist}]

    def _release_group(self) -> dict[str, Any]:
        return {
            "id": self._group,
            "title": "The Album",
            "primary-type": "Album",
            "secondary-types": [],
            "artist-credit": self._credit(),
            "first-release-date": "2001-01-01",
            "disambiguation": "",
        }

    def _release(self, mbid: str) -> dict[str, Any]:
        recording = {
            "id": RECORDING,
            "title": "The Song",
            "length": 1000,
            "video": False,
            "artist-credit": self._credit(),
        }
        track = {
            "id": TRACK,
            "number": "1",
            "position": 1,
            "title": "The Song",
            "length": 1000,
            "recording": recording,
            "artist-credit": self._credit(),
        }
        medium = {
            "position": 1,
            "format": "CD",
            "title": "",
            "track-count": 1,
            "track-offset": 0,
            "tracks": [track],
        }
        return {
            "id": mbid,
            "title": "The Album",
            "status": "Official",
            "date": "2001-01-01",
            "country": "GB",
            "barcode": "",
            "disambiguation": "",
            "quality": "normal",
            "packaging": None,
            "asin": None,
            "text-representation": {"language": "eng", "script": "Latn"},
            "artist-credit": self._credit(),
            "release-group": self._release_group(),
            "label-info": [],
            "media": [medium],
            "cover-art-archive": {
                "artwork": True,
                "count": 1,
                "front": True,
                "back": False,
                "darkened": False,
            },
        }
