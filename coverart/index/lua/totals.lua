-- include keys
-- Whether it is whole, the policy and sums, the first in the order of eviction, the leader, tallies.
return {
  redis.call('GET', p .. 'whole'),
  redis.call('HMGET', p .. 'sum', 'policy', 'bytes', 'files', 'f0', 'f1', 'f2', 'a0', 'a1', 'a2'),
  redis.call('ZRANGE', p .. 'age', 0, 0, 'WITHSCORES'),
  redis.call('GET', locks .. 'lead'),
  redis.call('HGETALL', p .. 'tally'),
}
