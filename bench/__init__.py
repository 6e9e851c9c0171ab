"""
How fast coverart is, against references measured in the same run on the same machine.

`python -m bench` starts the simulated archive, the proxy and the references as processes of
their own on free local ports, in a temporary directory, and ends what it started. Rows live in
rows_*.py; each is a function that gives pairs of figures, one pair a round.
"""
