"""
What tests share, a module for each thing:

    talk            asks over HTTP, for whole answers or to the byte; waits
    programs        finds nginx and Redis; runs commands of the system
    running         the proxy, in the test's process or as `twistd` runs it; clocks that are moved
    commands        the command `coverart`, run to its end
    previous        the version before this one, unpacked
    redis_server    a Redis of the test's own
    nginx_server    the shipped nginx in front of a proxy
    tls_client      asks over TLS, by a name and an authority of the tests
    drawings        the covers that the simulated archive shows
    raw_archive     an archive that answers bytes as told; a watch over where the proxy connects to
    small_proxies   proxies of a network, by HTTP and SOCKS, and ones that lie
    certificates    an authority, and certificates by it
    contents        what proxies hold on disk and in the index: filled, swept, compared
    disk            what lies on the disk, as an index learns it; a disk that is full
    hit_lines       nginx's hit log, and lines for it
    requests        requests as the web modules get them, without a connection
    hostile_bytes   requests as an attacker writes them
    shapes          paths as clients and attackers spell them
    doubles         stand-ins for the reactor, threads and the archive, for unit tests
    strategies      hypothesis' values of the cache's words
    targets         all that reads words from outside, each with its promise, for hypothesis and atheris
    pumped          the same with one piece repeated very often
    index_promises  what every kind of index promises
    machine         the cache as a state machine; `played` is what it plays with, `promises` what must hold
"""
