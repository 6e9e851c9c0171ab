"""What `twistd --help` lists: the proxy, and the simulated archive to try it against."""

from twisted.application.service import ServiceMaker

coverart = ServiceMaker(
    "coverart",
    "coverart.tap",
    "A caching proxy for the MusicBrainz Cover Art Archive.",
    "coverart",
)

coverart_archive = ServiceMaker(
    "coverart-archive",
    "coverart.simulator.tap",
    "A simulated Cover Art Archive on local ports, for demos, tests and benchmarks.",
    "coverart-archive",
)
