"""
A hit, a miss, a refresh, a purge; knows nothing of HTTP.

A request is looked up once. What is held is served; what is stale is served and refreshed behind
the client's back; what is missing is fetched once for all who ask, who get it while it arrives.

    single_flight       one work for all in this process who ask for the same
    size_limits         how much may be stored, and how much may be in memory
    uses                how often files were used, told in batches
    writer              files get their names, small ones in batches
    download            one image's way from the archive to its readers and to the disk
    fair_shares         how much one client may fetch in a minute
    fetch               the account of one fetch, and what can come of it
    held_files          what lies on the disk, and what is held no more
    names               where names point, and their links
    image_fetch         images, joined by whatever name they are asked
    listing_fetch       listings
    miss                what a miss works with, joined
    answers             what the cache answers
    substitutes         which size answers in place of one that the archive has not made
    missing_sizes       finds that size, held or fetched
    refresh             asking again about what is held
    operator_actions    purge and refresh by hand
    lookup              what to answer to each request
"""
