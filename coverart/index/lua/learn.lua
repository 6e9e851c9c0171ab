-- include changes
-- Keys and values: what is not known yet, and aliases that were checked later.
for i = 3, #ARGV, 2 do
  local k, v = ARGV[i], ARGV[i + 1]
  local old = redis.call('HGET', bucket(k), k)
  if not old or is_alias(k) and counted(time_of(old)) < counted(time_of(v)) then put(k, v) end
end
