-- include changes
-- What is forgotten, 'alias' or 'absence'; key. Whether it was known.
if ARGV[3] == 'alias' then return forget_alias(ARGV[4]) end
return redis.call('HDEL', absences(ARGV[4]), ARGV[4])
