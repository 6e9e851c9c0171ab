-- include keys
-- How many: keys and entries of the first in the order of eviction.
local found = {}
for _, k in ipairs(redis.call('ZRANGE', p .. 'age', 0, ARGV[1] - 1)) do
  local v = redis.call('HGET', bucket(k), k)
  if v and #v == 13 then found[#found + 1] = k found[#found + 1] = v
  else redis.call('ZREM', p .. 'age', k) end
end
return found
