-- include keys
-- Names, and what is added to each.
for i = 1, #ARGV, 2 do redis.call('HINCRBY', p .. 'tally', ARGV[i], ARGV[i + 1]) end
