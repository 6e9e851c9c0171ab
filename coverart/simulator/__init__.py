"""
A Cover Art Archive for one machine: all of its hops on local ports, with covers drawn on demand.

It plays coverartarchive.org, eventartarchive.org, archive.org and two of its storage nodes, for
demonstrations without a network, for tests that need the archive to misbehave on command, and for
benchmarks that must not trouble the real one.  Three ways in:

- ``twistd -n coverart-archive`` runs it as a service (`coverart.simulator.tap`);
- `coverart.simulator.service.Simulator` runs it inside a test;
- the control port (`coverart.simulator.control`) scripts it from any language.

It imports nothing of the proxy, so the two can only agree by both agreeing with the archive.
"""
