"""
What processes that share a cache have in common by Redis.

One of them cleans (the leader); that a thing is fetched by one of them is the index's to see to
(`index/claims.py`). Without Redis a process has the cache for itself, and nobody needs asking.

    redis_url           reads COVER_ART_REDIS_URL
    untold_mark         a mark in the cache directory: Redis was not told of all that lies there
    lua_scripts         Lua scripts, as they lie in `.lua` files
    redis_client        the connection: scripts, and what is said when Redis is away
    leader              which process cleans
"""
