"""
What the cache holds, without looking at the disk.

The disk is the truth and the index its memory: what an index says is checked against the file as
it is opened, and an index that lost everything is filled again from the disk. Two keep the same
promises: one in memory, one in Redis that processes share.

    batched_lookups     look-ups made while one is in flight go out together
    codec               keys and entries as bytes
    eviction_order      what is evicted first
    base                the promises
    claims              who fetches a thing, among all processes
    replies             what the scripts in lua/ reply
    memory              the index of one process
    redis               the index that processes share
"""
