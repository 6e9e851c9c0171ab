-- include changes
-- Keys, and how many times each was asked for.
for i = 3, #ARGV, 2 do
  local k = ARGV[i]
  local known, v = redis.call('ZSCORE', p .. 'age', k), redis.call('HGET', bucket(k), k)
  if known and v then
    local uses = math.min(15, tonumber(known) % 16 + tonumber(ARGV[i + 1]))
    redis.call('ZADD', p .. 'age', 'GT', rank(v, uses), k)
  end
end
