"""
Where a test is, and where a new one goes.

    unit/         one part by itself, in a folder named as the part's in `coverart/`: no reactor, no
                  socket, time in plain numbers. Runs under `python -m twisted.trial tests.unit` too.
    integration/  parts together, over real sockets: what a client, an operator or the archive sees.
                  Fixtures for them (sim, run, nginx, redis, spawn …) are in `conftest.py`.
    stories/      the whole over time: a state machine, the fault matrix, upgrade and rollback.
    browsers/     a real Chromium; a command of its own, which pytest does not run.
    clients/      real clients of the archive, installed from registries; a command, not part of CI.
    support/      what tests share. A helper that a second module needs moves there: no test module
                  imports another.
    data/         files that this project did not make.

The first line of each module says what it holds; each test's docstring says the promise. Integration
tests by what they are about:

    what is asked, and how      test_routes, test_openapi, test_shapes, test_three_ways, test_nginx,
                                test_tls, test_front_404, test_pipelined, test_request_ids, test_scripts,
                                test_forwarded, test_bases
    fetched, kept, refreshed    test_cache, test_listings, test_substitutes, test_far_index, test_time
    the disk and its limit      test_cleanup, test_limit, test_unstored, test_cli
    Redis and other processes   test_index, test_claims, test_shared, test_redis_trouble, test_sentinel,
                                test_twistd, test_processes
    counted and measured        test_hit_counts, test_walk
    too much, or hostile        test_overload, test_fair_shares, test_hostile_…, test_redirect_safety
    networks                    test_proxies, test_name_servers, test_authority
    the simulated archive       test_simulator

Tests meet by events (`Gate` of the simulator, Deferreds) or ask until something is so
(`talk.until`, `talk.becomes`): none sleeps for a fixed time, or waits for a line of a log.
"""
