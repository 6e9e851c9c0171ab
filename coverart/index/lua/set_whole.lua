-- include keys
-- By whom it was filled; the run of Redis: unless another began since, or something was garbled.
if redis.call('GET', p .. 'whole') == ARGV[1] then redis.call('SET', p .. 'whole', ARGV[2]) end
