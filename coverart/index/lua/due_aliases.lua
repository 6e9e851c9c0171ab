-- include changes
-- The last minute that is due, how many, a leader's token or empty: keys and aliases.
local found, left, seen = {}, tonumber(ARGV[4]), {}
if ARGV[5] ~= '' and redis.call('GET', locks .. 'lead') ~= ARGV[5] then return found end
while left > 0 do
  local minute = redis.call('ZRANGEBYSCORE', p .. 'due', '-inf', ARGV[3], 'LIMIT', 0, 1)[1]
    or redis.call('ZRANGEBYSCORE', p .. 'due', '(' .. math.floor(horizon / 60), '+inf', 'LIMIT', 0, 1)[1]
  if not minute then break end
  local k = redis.call('LPOP', p .. 'due:' .. minute)
  if not k then
    redis.call('ZREM', p .. 'due', minute)
  else
    left = left - 1
    local v = redis.call('HGET', bucket(k), k)
    -- One that was checked again since stands in a later list.
    if v and not seen[k] and math.floor(time_of(v) / 60) == tonumber(minute) then
      seen[k] = true
      found[#found + 1] = k found[#found + 1] = v
    end
  end
end
return found
