"""
Real clients of the archive, unmodified, against a real proxy: `python -m tests.clients`.

What the clients' table in `docs/clients.md` says was tried comes from here. The command installs
the clients from PyPI, npm and Debian into a folder of its own, starts the simulated archive and
two proxies (`twistd -n coverart`), one in each image mode, and runs each client against them. It prints
what each client asked and what it got, then a table. It needs root, for a network namespace: in
there `coverartarchive.org` is the proxy, and nothing else of the internet is reached. It is not part of
CI: a registry that is away, or a client's new dependency, is no fault of the proxy.

    __main__   the command
    places     installs the clients: a virtual environment, a folder of npm, an overlay for Debian's
    namespace  the network namespace: names, certificates, the overlay
    recorder   passes requests on to a proxy, and notes what was asked and what came
    musicbrainz_stub
               answers for musicbrainz.org what some clients ask there first
    rows       the clients, how each is led to the proxy, and what is expected
    programs/  what runs a client: it asks for covers as the client's users do, and compares the bytes
"""
