-- A command and its arguments: what Redis replies.
return redis.call(unpack(ARGV))
