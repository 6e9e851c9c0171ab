"""
The command `coverart`: scan, stats, clean.

    command             what every command does from its start to its exit code
    output              tables for people, JSON for programs
    main                the commands
    __main__            `python -m coverart.cli`
"""
