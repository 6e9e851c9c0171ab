"""A self-hosted caching proxy for the MusicBrainz Cover Art Archive."""

__version__ = "26.11.0"
