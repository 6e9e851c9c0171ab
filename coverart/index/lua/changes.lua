-- include keys
-- ARGV of every change: up to when times count, and the order of eviction.
local horizon, by_age = tonumber(ARGV[1]), ARGV[2] == 'oldest'
local function add(field, n) redis.call('HINCRBY', p .. 'sum', field, n) end
-- struct.unpack returns the next position too: the parentheses drop it.
local function size_of(v) return (struct.unpack('>I4', v, 2)) end
-- An entry and an alias end with their time.
local function time_of(v) return (struct.unpack('>d', v, #v - 7)) end
-- A time ahead of all clocks was written by one that was wrong, and counts for nothing.
local function counted(at) if at > horizon then return 0 end return at end
local function level() return tonumber(redis.call('HGET', p .. 'sum', 'level') or 0) end
-- The place in the order of eviction (eviction_order.py); a number as a string loses nothing.
local function rank(v, uses)
  if by_age then return string.format('%.17g', time_of(v)) end
  local size = math.max(size_of(v), 4096)
  local worth = math.floor(64 * (size + 1048576) / size)
  return string.format('%.0f', (level() + uses * worth) * 16 + uses)
end
local function put_file(k, v)
  local b = bucket(k)
  local old = redis.call('HGET', b, k)
  redis.call('HSET', b, k, v)
  redis.call('ZADD', p .. 'age', rank(v, 1), k)
  if not old then add('files', 1) add('f' .. entity(k), 1) end
  -- What is no entry of ours was never counted.
  add('bytes', size_of(v) - (old and #old == #v and size_of(old) or 0))
  redis.call('SREM', p .. 'doubt', k)
end
local function forget_file(k, v)
  if redis.call('HGET', bucket(k), k) ~= v then return 0 end
  redis.call('HDEL', bucket(k), k)
  redis.call('ZREM', p .. 'age', k)
  add('bytes', -size_of(v)) add('files', -1) add('f' .. entity(k), -1)
  return 1
end
local function put_alias(k, v)
  if redis.call('HSET', bucket(k), k, v) == 1 then add('a' .. entity(k), 1) end
  if is_role(k) then
    local minute = string.format('%.0f', math.floor(time_of(v) / 60))
    redis.call('RPUSH', p .. 'due:' .. minute, k)
    redis.call('ZADD', p .. 'due', minute, minute)
  end
end
local function forget_alias(k)
  local known = redis.call('HDEL', bucket(k), k)
  if known == 1 then add('a' .. entity(k), -1) end
  return known
end
local function put(k, v)
  if is_alias(k) then put_alias(k, v) else put_file(k, v) end
  redis.call('HDEL', absences(k), k)
end
-- Whether what is known of a name or a listing was asked for after that. An image never changes.
local function knows_later(k, at)
  if k:byte(1) < 16 then return false end
  local v, no, latest = redis.call('HGET', bucket(k), k), absent(k), 0
  if v and (#v == 13 or #v == 34) then latest = counted(time_of(v)) end
  if no and #no == 16 then latest = math.max(latest, counted((struct.unpack('>d', no)))) end
  return latest > counted(at)
end
-- Names and tokens of claims stand at the end of ARGV. With `settled` their files are in doubt no more;
-- those who wait find the error, for so many ms.
local function end_claims(first, settled, error, life)
  for i = first, #ARGV, 2 do
    local lock = locks .. 'get:' .. ARGV[i]
    if settled then redis.call('SREM', p .. 'doubt', ARGV[i]) end
    if redis.call('GET', lock) == ARGV[i + 1] then
      if error then redis.call('SET', lock, error, 'PX', life) else redis.call('DEL', lock) end
    end
  end
end
