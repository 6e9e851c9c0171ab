"""Dates as headers carry them."""

from __future__ import annotations

from datetime import datetime

from werkzeug.http import parse_date


def http_date(text: str | None) -> datetime | None:
    """A date as headers carry it (RFC 9110 section 5.6.7); None where there is none."""
    try:
        return parse_date(text)
    except OverflowError:
        # A year or an hour of twenty digits.
        return None
