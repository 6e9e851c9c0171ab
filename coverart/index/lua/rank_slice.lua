-- include changes
-- include slice
-- Three digits of a slice: ranks its files anew, as if each had been used once.
local held = slice(ARGV[3])
for i = 1, #held, 2 do
  if not is_alias(held[i]) then redis.call('ZADD', p .. 'age', rank(held[i + 1], 1), held[i]) end
end
