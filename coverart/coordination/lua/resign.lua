-- KEYS: the lock. Token: the lock ends if it is the caller's.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
