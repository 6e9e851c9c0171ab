-- include keys
-- How many: keys of files that were being stored or removed by a process that is gone.
local found = {}
for _, k in ipairs(redis.call('SRANDMEMBER', p .. 'doubt', ARGV[1])) do
  if redis.call('EXISTS', locks .. 'get:' .. k) == 0 then found[#found + 1] = k end
end
return found
