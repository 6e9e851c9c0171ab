"""
The command `coverart`: scan, stats, clean.

    command             what every command does from its start to its output and exit code
    main                the commands
    __main__            `python -m coverart.cli`
"""
