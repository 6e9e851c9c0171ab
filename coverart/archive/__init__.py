"""
The archive's language, and asking it.

A client's path names a thing; hop 1 of the archive says where the thing lies at archive.org; that
leads on to the server that has the bytes. Each hop's address is checked before it is asked, one
deadline bounds them all, and a host that fails is left alone for a while.

    bounded_heads       bounds the head of an answer in bytes
    circuit_breaker     leaves a host alone that fails
    paths               reads a client's path
    throttle            lets hits go first
    transfer            takes a body, checks that it is whole
    url_policy          which address a redirect may lead to
    archive_client      one request of the archive, by treq
    listings            reads and rewrites an index.json
    safe_connect        resolves a host, refuses private addresses, connects
    upstream            where a name points, and where its image's bytes are
"""
