-- KEYS: the lock. Token, life in ms. Whether the lock is the caller's: taken, or kept.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
local left = redis.call('PTTL', KEYS[1])
local mine = redis.call('GET', KEYS[1]) == ARGV[1]
-- Another program wrote it, or the server's clock was set back: no lock of ours lasts so long.
if mine or left < 0 or left > tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return mine and 1 or 0
