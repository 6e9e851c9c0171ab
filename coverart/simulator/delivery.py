"""What behaviours make of an answer: pure rules, so that sending it needs to know none of them."""

import gzip

import attrs

from coverart.simulator.answers import Answer
from coverart.simulator.faults import (
    Behaviour,
    Body,
    Chunked,
    ContentType,
    Cut,
    Drip,
    Gzip,
    Html,
    NoLength,
    Redirect,
    RedirectLoop,
    Reset,
    Stall,
    Status,
    WrongLength,
)

_HTML = (b"Content-Type", b"text/html; charset=utf-8")


@attrs.frozen(kw_only=True)
class Delivery:
    """
    How to send an answer.

    :ivar length: the Content-Length to announce; None announces none.
    :ivar chunked: without a length, frame the body; otherwise it ends with the connection.
    :ivar send: send only so many bytes of the body; None means all, or not even the head of what is
        reset.
    :ivar then: what follows those bytes: ``finish``, ``close``, ``reset``, or ``stall`` at `gate`.
    """

    answer: Answer
    length: int | None
    chunked: bool = False
    send: int | None = None
    then: str = "finish"
    gate: str | None = None
    bytes_per_s: int | None = None


def deliver(answer: Answer, plan: tuple[Behaviour, ...], own_url: str) -> Delivery:
    """Say how an answer is sent once every behaviour of a plan has had its way with it."""
    for behaviour in plan:
        answer = _altered(answer, behaviour, own_url)
    delivery = Delivery(answer=answer, length=len(answer.body))
    for behaviour in plan:
        match behaviour:
            case Reset(after_bytes=count):
                delivery = attrs.evolve(delivery, then="reset", send=count)
            case Cut(after_bytes=count):
                delivery = attrs.evolve(delivery, then="close", send=count)
            case WrongLength(by=by):
                length = max(0, len(answer.body) + by)
                delivery = attrs.evolve(delivery, then="close", length=length)
            case NoLength():
                delivery = attrs.evolve(delivery, then="close", length=None)
            case Chunked():
                delivery = attrs.evolve(delivery, length=None, chunked=True)
            case Stall(after_bytes=count, gate=gate):
                delivery = attrs.evolve(delivery, then="stall", send=count, gate=gate)
            case Drip(bytes_per_s=rate):
                delivery = attrs.evolve(delivery, bytes_per_s=rate)
            case _:
                pass
    return delivery


def _altered(answer: Answer, behaviour: Behaviour, own_url: str) -> Answer:
    match behaviour:
        case Status(code=code, retry_after=retry_after):
            headers = [_HTML]
            if retry_after is not None:
                headers.append((b"Retry-After", retry_after.encode()))
            body = f"<html><body><h1>{code}</h1></body></html>\n".encode()
            return Answer(status=code, headers=tuple(headers), body=body)
        case Html():
            body = b"<html><body><h1>Temporarily offline</h1></body></html>\n"
            return Answer(status=200, headers=(_HTML,), body=body)
        case Body(data=data, content_type=content_type):
            kind = (b"Content-Type", content_type.encode())
            return Answer(status=200, headers=(kind,), body=data)
        case ContentType(value=value):
            rest = _without(answer, b"content-type")
            given = () if value is None else ((b"Content-Type", value.encode()),)
            return attrs.evolve(answer, headers=rest + given)
        case Gzip():
            return attrs.evolve(
                answer,
                headers=(*answer.headers, (b"Content-Encoding", b"gzip")),
                body=gzip.compress(answer.body, mtime=0),
            )
        case Redirect(location=location, code=code):
            return Answer(status=code, headers=((b"Location", location.encode()), _HTML))
        case RedirectLoop():
            return Answer(status=302, headers=((b"Location", own_url.encode()), _HTML))
        case _:
            return answer


def _without(answer: Answer, name: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(header for header in answer.headers if header[0].lower() != name)
