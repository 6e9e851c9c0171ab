"""
HTTP: reads a request, sends the cache's answer.

Only here are statuses, headers and bodies known. `site` looks at each request first: it gives a
path of the archive to `covers`, which answers what is held or known to be absent at once and all
else by Klein's routes, and what is not the archive's to `operators`.

    access_log          one line for each request, and what is counted of it
    conditional         conditions and ranges (pure)
    connection_limits   how many connections, and for how long
    status              the fields of /cache-status
    accel               lets nginx send a file: X-Accel-Redirect
    delivery            sends bodies: of a file, of an image while it arrives
    forwarded           who asks, and by which scheme, through trusted proxies
    proxy_status        what failed at which host, as JSON and as Proxy-Status
    headers             statuses and headers of answers; an error as JSON
    operator_hosts      by which Host operators may ask
    public_url          the base URL of a client's requests; the prefixes /serve and /redirect
    public_listings     listings whose URLs lead to this proxy
    covers              the routes of the archive
    http_channel        HTTP/1.1 as twisted.web reads it, bounded
    operators           /health, /ready, /cache-status, /metrics, /; purge and refresh; /robots.txt
    site                brings them together
"""
