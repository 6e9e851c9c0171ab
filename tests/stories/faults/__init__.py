"""
The fault matrix: what may break around the proxy, and what must hold while it is broken and after.

A row is a fault. What it promises is claimed in six columns (`matrix.COLUMNS`) by the code that
checks it, so that the table can say nothing that was not looked at. `python -m
tests.stories.faults` plays all rows and prints the table; test_faults.py has each as a test.

    matrix                   rows, claims, the table
    stage                    what a row is played on
    archive, sizes, names,   the rows, by what breaks
        tls, disk, redis,
        killed, clocks
    victim                   a proxy process that is to meet its fault inside
    rows                     all of them, and how they are played side by side
"""
