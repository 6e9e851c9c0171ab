-- include changes
-- A leader's token, or empty; '1' if for want of room; keys and entries. Whether each was known so; nil
-- if another leads.
if ARGV[3] ~= '' and redis.call('GET', locks .. 'lead') ~= ARGV[3] then return false end
local gone = {}
for i = 5, #ARGV, 2 do
  local reached = not by_age and ARGV[4] == '1' and redis.call('ZSCORE', p .. 'age', ARGV[i])
  gone[#gone + 1] = forget_file(ARGV[i], ARGV[i + 1])
  -- What is evicted is still on the disk, and raises the level from which the next is ranked.
  if gone[#gone] == 1 and ARGV[4] == '1' then redis.call('SADD', p .. 'doubt', ARGV[i]) end
  reached = math.floor(tonumber(reached or 0) / 16)
  if gone[#gone] == 1 and reached > level() then
    redis.call('HSET', p .. 'sum', 'level', string.format('%.0f', reached))
  end
end
return gone
