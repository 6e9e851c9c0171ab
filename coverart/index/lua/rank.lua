-- include changes
-- Keys and entries of files: ranks those that are held anew, as if each had been used once.
for i = 3, #ARGV, 2 do redis.call('ZADD', p .. 'age', 'XX', rank(ARGV[i + 1], 1), ARGV[i]) end
