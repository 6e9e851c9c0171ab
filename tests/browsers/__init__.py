"""
What pages of another origin can do with covers, in a real Chromium without a window.

    python -m tests.browsers

starts the simulated archive, the proxy, the shipped nginx in front of it, and a server of pages with
an origin of its own; prints each row, "held" or "BROKEN: …", and all that the browser said in its
console. Not part of pytest, which asks for the same headers by itself (test_three_ways and others):
it needs `chromium` on PATH, or named by CHROMIUM.

    chromium      a browser, spoken to over a pipe
    page.html     what a page does
    __main__      the rows
"""
