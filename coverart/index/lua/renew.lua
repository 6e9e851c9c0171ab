-- include keys
-- Life in ms; names and tokens of claims.
for i = 2, #ARGV, 2 do
  local lock = locks .. 'get:' .. ARGV[i]
  if redis.call('GET', lock) == ARGV[i + 1] then redis.call('PEXPIRE', lock, ARGV[1]) end
end
