"""
What each hop answers, as pure rules: a request's parts in, status, headers and body out.

Hop 1 follows the source of the redirect service (metabrainz/artwork-redirect), with its looseness:
the path is decoded, any name that begins with ``front`` is the front, and a size matches by its
first digits.  In front of it is an nginx, which refuses some paths by itself.
"""

import hashlib
import json
import re
from email.utils import formatdate, parsedate_to_datetime
from html import escape
from os.path import splitext
from urllib.parse import unquote, unquote_to_bytes
from wsgiref.util import shift_path_info

import attrs

from coverart.simulator.catalogue import THUMBNAIL_SIZES, Catalogue, Entity, Image, Item

_MBID = re.compile(r"[a-f0-9]{8}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{12}")
_NOT_FOR_NGINX = re.compile(r"[\x00-\x20\x7f]|%00|%(?![0-9a-fA-F]{2})")
_API = b"https://musicbrainz.org/doc/Cover_Art_Archive/API"
_ALLOW = (b"Allow", b"GET, HEAD, OPTIONS")
_ANY_ORIGIN = (b"Access-Control-Allow-Origin", b"*")
_HTML = (b"Content-Type", b"text/html; charset=utf-8")
_READ = {"GET", "HEAD"}
_ENTITIES: dict[str, tuple[Entity, ...]] = {
    "release": ("release", "release-group"),
    "event": ("event",),
}
_FILE = re.compile(
    r"mbid-(?P<mbid>[^/]*)-(?P<id>\d{1,20})"
    rf"(?:_thumb(?P<size>{'|'.join(map(str, THUMBNAIL_SIZES))}))?\.(?P<ext>\w+)"
)
_NODE_PATH = re.compile(r"/\d+/items/mbid-(?P<mbid>[0-9a-f-]{36})/(?P<name>[^/]+)")
_DOWNLOAD_PATH = re.compile(r"/download/mbid-(?P<mbid>[0-9a-f-]{36})(?P<rest>/.*)?")
_METADATA_PATH = re.compile(r"/metadata/mbid-(?P<mbid>[0-9a-f-]{36})/files/?")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
CONTENT_TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "pdf": "application/pdf",
    "json": "application/json",
}


@attrs.frozen(kw_only=True)
class Places:
    """Base URLs of the hops, as they appear in a Location."""

    release: str
    event: str
    archive: str
    node1: str
    node2: str


@attrs.frozen(kw_only=True)
class Answer:
    """A whole response; its Content-Length is left to whoever sends it."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@attrs.frozen(kw_only=True)
class FileWanted:
    """The answer is a file whose bytes may have to be drawn; see `file_answer`."""

    item: Item
    image: Image
    size: int | None


@attrs.frozen(kw_only=True)
class FilesWanted:
    """The answer lists all files of an item with their digests; see `files_answer`."""

    item: Item


def _page(status: int, title: str, text: str, *headers: tuple[bytes, bytes]) -> Answer:
    body = (
        '<!doctype html>\n<html lang="en">\n'
        f"<title>{status} {escape(title)}</title>\n<h1>{escape(title)}</h1>\n<p>{escape(text)}</p>\n"
    )
    return Answer(status=status, headers=(_HTML, *headers), body=body.encode())


# Hop 1: coverartarchive.org and eventartarchive.org


class _RefusedError(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def _bad(text: str) -> _RefusedError:
    return _RefusedError(_page(400, "Bad Request", text, _ANY_ORIGIN))


def _missing(text: str) -> _RefusedError:
    return _RefusedError(_page(404, "Not Found", text, _ANY_ORIGIN))


def redirect_service(
    catalogue: Catalogue, places: Places, host: str, method: str, path: str
) -> Answer:
    """
    Answer as the redirect service does, on the host of releases or on that of events.

    :param host: ``release`` or ``event``.
    """
    try:
        return _redirect_service(catalogue, places, host, method, path)
    except _RefusedError as refused:
        return refused.answer


def _redirect_service(
    catalogue: Catalogue, places: Places, host: str, method: str, path: str
) -> Answer:
    if method not in {*_READ, "OPTIONS"}:
        return _page(405, "Method Not Allowed", "Only GET, HEAD, OPTIONS.", _ALLOW, _ANY_ORIGIN)
    if _nginx_refuses(path):
        raise _bad("nginx does not pass this on")
    decoded = unquote_to_bytes(path.encode("latin-1")).decode("latin-1")
    environ = {"PATH_INFO": decoded, "SCRIPT_NAME": ""}
    first = _pop(environ)
    if method == "OPTIONS":
        return _options(host, first, environ)
    if first in {"", "coverartarchive.html", "eventartarchive.html"}:
        return _page(200, "Cover Art Archive", "A simulated archive of cover art.", _ANY_ORIGIN)
    if first == "robots.txt":
        return _text(200, b"User-agent: *\nAllow: /")
    if first == "api":
        return _text(301, b"See: %s\n" % _API, (b"Location", _API))
    if first == "img":
        raise _missing("There are no pictures here.")
    entity = _entity(host, first)
    mbid = _mbid(shift_path_info(environ))
    name = _pop(environ)
    target = _target(catalogue, entity, mbid, name)
    location = f"{places.archive}/download/{target}"
    body = _page(307, "Redirecting...", f"You should be redirected to {location}").body
    return Answer(
        status=307, headers=((b"Location", location.encode()), _HTML, _ANY_ORIGIN), body=body
    )


def _nginx_refuses(path: str) -> bool:
    """
    Say whether the server in front of the service answers a path with a 400 of its own.

    It resolves dots for itself, and none leads above the root, though it passes on what came.
    """
    if not path.startswith("/") or _NOT_FOR_NGINX.search(path):
        return True
    depth = 0
    for part in unquote(path).split("/"):
        depth += -1 if part == ".." else part not in {"", "."}
        if depth < 0:
            return True
    return False


def _pop(environ: dict[str, str]) -> str:
    """Take the first segment of what is left, as werkzeug's pop_path_info did."""
    segment, slash, rest = environ["PATH_INFO"].lstrip("/").partition("/")
    environ["PATH_INFO"] = slash + rest
    return segment.encode("latin-1").decode("utf-8", "replace")


def _entity(host: str, name: str) -> Entity:
    for entity in _ENTITIES[host]:
        if entity == name:
            return entity
    supported = ", ".join(_ENTITIES[host])
    raise _bad(f"Only the following entities are supported: {supported}")


def _mbid(text: str | None) -> str:
    if not text:
        raise _bad("no MBID specified")
    if not _MBID.fullmatch(text):
        raise _bad("invalid MBID specified")
    return text


def _options(host: str, first: str, environ: dict[str, str]) -> Answer:
    """OPTIONS is stricter with names than GET."""
    if first == "*" and environ["PATH_INFO"]:
        raise _bad("There is more than an asterisk.")
    if first not in {"", "*"}:
        _entity(host, first)
        _mbid(shift_path_info(environ))
        if image := shift_path_info(environ):
            name, *sizes = splitext(image)[0].split("-")
            if name not in {"front", "back"} and not _is_number(name):
                raise _bad("There is no such image.")
            if sizes and sizes[0] not in {str(size) for size in THUMBNAIL_SIZES}:
                raise _bad("There is no such size.")
    return Answer(status=200, headers=(_ALLOW, _ANY_ORIGIN))


def _is_number(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def _text(status: int, body: bytes, *headers: tuple[bytes, bytes]) -> Answer:
    kind = (b"Content-Type", b"text/plain; charset=utf-8")
    return Answer(status=status, headers=(kind, *headers, _ANY_ORIGIN), body=body)


def _target(catalogue: Catalogue, entity: Entity, mbid: str, name: str) -> str:
    """Say which file of which item a name of an entity means just now."""
    item = catalogue.find(entity, mbid)
    if entity == "release-group":
        if item is None:
            raise _missing(f"No cover art found for release group {mbid}")
        if name and not name.startswith("front"):
            raise _bad(f"{name} not supported for release groups.")
    if not name:
        if item is None or not item.images:
            raise _missing(f"No cover art found for {entity} {mbid}")
        return f"mbid-{item.mbid}/index.json"
    image: Image | None
    if name.startswith("front"):
        image = item.front if item else None
    elif name.startswith("back") and entity == "release":
        image = item.back if item else None
    else:
        try:
            image_id = int(re.sub("[^0-9].*", "", name))
        except ValueError:
            raise _bad(f"{name} does not contain a valid image id") from None
        image = item.image(image_id) if item else None
    if item is None or image is None:
        raise _missing(f"No such image found for {entity} with identifier {mbid}")
    return f"mbid-{item.mbid}/{file_name(item, image, _loose_size(name))}"


def _loose_size(name: str) -> int | None:
    _, dash, size = name.rpartition("-")
    if not dash:
        return None
    return next((known for known in THUMBNAIL_SIZES if size.startswith(str(known))), None)


def file_name(item: Item, image: Image, size: int | None) -> str:
    """Give the name of a file inside its item; `size` None means the original."""
    if size is None:
        return f"mbid-{item.mbid}-{image.id}.{image.ext}"
    return f"mbid-{item.mbid}-{image.id}_thumb{size}.jpg"


# Hop 2: archive.org


def archive(
    catalogue: Catalogue, places: Places, method: str, path: str, turn: int | None = None
) -> Answer | FilesWanted:
    """
    Answer as archive.org does: send downloads to a storage node, or list an item's files.

    :param turn: with a number, the nodes take turns; without, an item keeps to one.
    """
    if method not in _READ:
        return _page(405, "Method Not Allowed", "Only GET and HEAD.", (b"Allow", b"GET, HEAD"))
    path = unquote(path)
    if match := _METADATA_PATH.fullmatch(path):
        item = catalogue.item(match["mbid"])
        return FilesWanted(item=item) if item else _page(404, "Not Found", "No such item.")
    match = _DOWNLOAD_PATH.fullmatch(path)
    if match is None or (item := catalogue.item(match["mbid"])) is None:
        return _page(404, "Item not available", "The item is not available.")
    location = node_url(places, item.mbid, turn) + (match["rest"] or "/")
    return Answer(status=302, headers=((b"Location", location.encode()), _HTML))


def node_url(places: Places, mbid: str, turn: int | None = None) -> str:
    """Give the URL of an item on one of the two families of storage nodes."""
    family = int(mbid[-1], 16) if turn is None else turn
    if family % 2 == 0:
        return f"{places.node1}/{int(mbid[:2], 16) % 36}/items/mbid-{mbid}"
    return f"{places.node2}/0/items/mbid-{mbid}"


def item_files(item: Item) -> tuple[tuple[Image, int | None], ...]:
    """Say which image files an item has just now: originals and the thumbnails made so far."""
    return tuple(
        (image, size)
        for image in item.images
        for size in (None, *THUMBNAIL_SIZES)
        if size not in image.underived
    )


def files_answer(item: Item, bodies: tuple[bytes, ...]) -> Answer:
    """List the files of an item; `bodies` are those of `item_files`, in that order."""
    named = [("index.json", listing(item))]
    named += [
        (file_name(item, image, size), body)
        for (image, size), body in zip(item_files(item), bodies, strict=True)
    ]
    result = [
        {
            "name": name,
            "size": str(len(body)),
            "md5": hashlib.md5(body, usedforsecurity=False).hexdigest(),
            "sha1": hashlib.sha1(body, usedforsecurity=False).hexdigest(),
        }
        for name, body in named
    ]
    return Answer(
        status=200,
        headers=((b"Content-Type", b"application/json"),),
        body=json.dumps({"result": result}).encode(),
    )


# Hop 3: a storage node


_NO_FILE = _page(404, "Not Found", "The file is not here.")


def node(catalogue: Catalogue, method: str, path: str) -> Answer | FileWanted:
    """Answer as a storage node does; it knows files only, and no CORS."""
    if method not in _READ:
        return _page(405, "Method Not Allowed", "Only GET and HEAD.", (b"Allow", b"GET, HEAD"))
    match = _NODE_PATH.fullmatch(unquote(path))
    if match is None or (item := catalogue.item(match["mbid"])) is None:
        return _NO_FILE
    if match["name"] == "index.json":
        return _listing_answer(item)
    file = _FILE.fullmatch(match["name"])
    if file is None or file["mbid"] != item.mbid:
        return _NO_FILE
    image = item.image(int(file["id"]))
    size = int(file["size"]) if file["size"] else None
    if image is None or file["ext"] != ("jpg" if size else image.ext) or size in image.underived:
        return _NO_FILE
    return FileWanted(item=item, image=image, size=size)


def file_answer(wanted: FileWanted, body: bytes) -> Answer:
    """Give the answer of a storage node that found the file."""
    kind = CONTENT_TYPES["jpg" if wanted.size else wanted.image.ext]
    # Some nodes add a charset even to an image; which do is fixed here, so that a run repeats.
    if wanted.image.id % 3 == 0:
        kind += "; charset=UTF-8"
    made = wanted.image.uploaded + (wanted.size or 0)
    return _node_file(kind, made, f'"{made:x}-{len(body):x}"', body)


def _listing_answer(item: Item) -> Answer:
    body = listing(item)
    made = max(image.uploaded for image in item.images) + item.revision
    tag = hashlib.sha1(body, usedforsecurity=False).hexdigest()[:16]
    charset = "; charset=UTF-8" if item.index % 3 == 0 else ""
    return _node_file(CONTENT_TYPES["json"] + charset, made, f'"{tag}"', body)


def _node_file(content_type: str, made: int, etag: str, body: bytes) -> Answer:
    return Answer(
        status=200,
        headers=(
            (b"Content-Type", content_type.encode()),
            (b"Last-Modified", formatdate(made, usegmt=True).encode()),
            (b"ETag", etag.encode()),
            (b"Accept-Ranges", b"bytes"),
        ),
        body=body,
    )


def listing(item: Item) -> bytes:
    """Write the index.json of an item, in the form of its age."""
    scheme = "http" if item.old_listing else "https"
    host = "coverartarchive.org" if item.entity == "release" else "eventartarchive.org"
    images = []
    for image in item.images:
        url = f"{scheme}://{host}/{item.entity}/{item.mbid}/{image.id}"
        thumbnails = {"small": f"{url}-250.jpg", "large": f"{url}-500.jpg"}
        if not item.old_listing:
            thumbnails.update({str(size): f"{url}-{size}.jpg" for size in THUMBNAIL_SIZES})
        entry = {
            "approved": image.approved,
            "back": image.back,
            "comment": image.comment,
            "edit": image.edit,
            "front": image.front,
            "id": str(image.id) if item.old_listing else image.id,
            "image": f"{url}.{image.ext}",
            "thumbnails": thumbnails,
            "types": image.types,
        }
        if item.entity == "event":
            del entry["back"]
        images.append(entry)
    whole = {"images": images, item.entity: f"{scheme}://musicbrainz.org/{item.entity}/{item.mbid}"}
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


def conditional(
    answer: Answer,
    *,
    if_none_match: bytes | None = None,
    if_modified_since: bytes | None = None,
    wanted_range: bytes | None = None,
) -> Answer:
    """Turn a node's 200 into a 304, a 206 or a 416 where the request's headers ask for it."""
    if answer.status != 200 or (etag := answer.header(b"ETag")) is None:
        return answer
    if if_none_match is not None:
        tags = {tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b",")}
        if tags & {etag, b"*"}:
            return attrs.evolve(answer, status=304, body=b"")
    elif if_modified_since is not None and _not_since(answer, if_modified_since):
        return attrs.evolve(answer, status=304, body=b"")
    return answer if wanted_range is None else _partial(answer, wanted_range)


def _not_since(answer: Answer, if_modified_since: bytes) -> bool:
    modified = answer.header(b"Last-Modified") or b""
    try:
        asked = parsedate_to_datetime(if_modified_since.decode("ascii"))
        return parsedate_to_datetime(modified.decode("ascii")) <= asked
    except (ValueError, TypeError):
        return False


def _partial(answer: Answer, wanted_range: bytes) -> Answer:
    match = _RANGE.fullmatch(wanted_range.decode("latin-1").strip())
    if match is None or not (match[1] or match[2]):
        return answer  # several ranges, or nonsense: a server may send the whole
    length = len(answer.body)
    if match[1]:
        start = int(match[1])
        end = min(int(match[2]), length - 1) if match[2] else length - 1
    else:
        start, end = max(0, length - int(match[2])), length - 1
    if start >= length or start > end:
        return Answer(
            status=416, headers=((b"Content-Range", b"bytes */%d" % length), _HTML), body=b""
        )
    return attrs.evolve(
        answer,
        status=206,
        headers=(*answer.headers, (b"Content-Range", b"bytes %d-%d/%d" % (start, end, length))),
        body=answer.body[start : end + 1],
    )
