-- include keys
-- By whom it was filled; the run of Redis: unless another began since, or something was garbled.
if redis.call('GET', p .. 'fill') ~= ARGV[1] then return end
redis.call('DEL', p .. 'fill')
redis.call('SET', p .. 'whole', ARGV[2], 'NX')
