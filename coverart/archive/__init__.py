"""
The archive's language, and asking it.

A client's path names a thing; hop 1 of the archive says where the thing lies at archive.org; that
leads on to the server that has the bytes. Each hop's address is checked before it is asked, one
deadline bounds them all, and a host that fails is not asked for a while.

    circuit_breaker     stops asking a host that fails
    coarse_clock        bounds in time, by one timer for all
    connection          bounds the head of an answer in bytes, takes no encoded body
    name_lookup         looks up the archive's names, by name servers of the operator's choice
    paths               reads a client's path
    proxies             which proxy leads to a host
    handshakes          what is said to a proxy: CONNECT, SOCKS 5
    source              what a fetch asks of a source of covers
    throttle            lets hits go first
    transfer            takes a body, checks that it is whole
    tunnels             connects through a proxy
    url_policy          which address a redirect may lead to
    whole_url           asks an HTTP proxy for plain http
    connect_errors      what a failed connection is called, by RFC 9209
    archive_client      one request of the archive, by treq
    follow_redirects    goes where the archive sends
    listings            reads an index.json, and cuts it for another host
    leads_here          notices when the archive's name leads to this proxy itself
    safe_connect        resolves a host, refuses private addresses, connects by TLS
    upstream            the archive as a source: where a name points, where its bytes are
"""
