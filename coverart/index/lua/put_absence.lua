-- include changes
-- Key; since and until; life in ms; names and tokens of claims. Whether it was taken.
local k, v, life = ARGV[3], ARGV[4], ARGV[5]
end_claims(6, true)
local now = struct.unpack('>d', v)
if knows_later(k, now) then return 0 end
local b = absences(k)
if is_alias(k) then forget_alias(k) end
-- Put anew, it stands behind all others: a small hash keeps the order in which it was filled.
redis.call('HDEL', b, k)
redis.call('HSET', b, k, v)
if redis.call('HLEN', b) > 100 then redis.call('HDEL', b, redis.call('HKEYS', b)[1]) end
if redis.call('PTTL', b) < tonumber(life) then redis.call('PEXPIRE', b, life) end
return 1
