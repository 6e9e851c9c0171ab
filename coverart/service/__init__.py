"""
The running process: its settings, what it is made of, its start and its end.

    setting_values      the kinds of values a setting may have
    settings            every setting, its default and what it means
    timers              work repeated by the clock; how late the reactor is
    disk_threads        threads for work on the disk
    open_cache          the cache directory with its index: enough to clean and to scan
    upkeep              what a running service does by the clock
    lifecycle           starts and stops it all
    listening           where it listens
    wiring              gives each part what it needs
    worker              one of several processes behind one port
    processes           starts those processes, and watches them
"""
