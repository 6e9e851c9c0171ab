"""
Keeps the disk below its limit and the index true.

The leader sweeps: it evicts first and mends afterwards. What disk and index say of the same part
is compared a part at a time.

    hit_log             counts what nginx served by itself
    reconcile           the one comparison of disk and index
    share_counts        adds what each process counted
    evict               evicts files and retires aliases
    sweep               the cleanup
    scan                `coverart scan`
"""
