-- include keys
-- By whom it is filled next; the order of eviction; names of keys to remove, beside those of things.
for i = 0, 65535 do redis.call('UNLINK', p .. string.format('b:%04x', i)) end
for i = 0, 1023 do redis.call('UNLINK', p .. string.format('no:%03x', i)) end
-- Another program may have put something else there.
for _, minute in ipairs(redis.pcall('ZRANGE', p .. 'due', 0, -1)) do redis.call('UNLINK', p .. 'due:' .. minute) end
for i = 3, #ARGV do redis.call('UNLINK', p .. ARGV[i]) end
redis.call('HSET', p .. 'sum', 'policy', ARGV[2])
redis.call('SET', p .. 'whole', ARGV[1])
