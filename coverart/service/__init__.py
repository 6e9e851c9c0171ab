"""
The running process: its settings, what it is made of, its start and its end.

    lifecycle           starts and stops the parts; what goes by the clock
    setting_values      the kinds of values a setting may have
    settings            every setting, its default and what it means
    listening           where it listens
    processes           several processes behind one port
    wiring              gives each part what it needs
    worker              one of several processes
"""
