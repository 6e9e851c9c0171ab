-- include keys
-- Name (of a file its key), token, life in ms, '1' to take it also where the file is held, '1' if the
-- caller waited. What became of it, entry, absence. 1: it is taken. 0: the file is held. -1: another
-- has it. A string: the error of the one that was waited for.
local k, token, life, again, waited = unpack(ARGV)
local entry, no = false, false
if not is_alias(k) then
  entry = redis.call('HGET', bucket(k), k)
  no = not entry and absent(k)
end
if entry and #entry == 13 and again ~= '1' then return {0, entry, no} end
local lock = locks .. 'get:' .. k
local owner = redis.call('GET', lock)
if owner and owner:sub(1, 1) ~= '-' then
  -- Another program wrote it, or the server's clock was set back: no lock of ours lasts so long.
  local left = redis.call('PTTL', lock)
  if left < 0 or left > tonumber(life) then redis.call('PEXPIRE', lock, life) end
  return {-1, entry, no}
end
if owner and waited == '1' then return {owner, entry, no} end
redis.call('SET', lock, token, 'PX', life)
if not is_alias(k) then redis.call('SADD', p .. 'doubt', k) end
return {1, entry, no}
