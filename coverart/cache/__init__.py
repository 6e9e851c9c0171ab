"""
A hit, a miss, a refresh, a purge; knows nothing of HTTP.

A request is looked up once. What is held is served; what is stale is served and refreshed behind
the client's back; what is missing is fetched once for all who ask, who get it while it arrives.

    single_flight       one work for all who ask for the same
    size_limits         how much may be stored, and how much may be in memory
    uses                how often files were used, told in batches
    writer              files get their names, small ones in batches
    download            one image's way from the archive to its readers and to the disk
    miss                what a miss does
    answers             what the cache answers
    lookup              what to answer to each request
"""
