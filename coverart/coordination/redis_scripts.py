"""
What the index does inside Redis: short scripts, each atomic, each touching a few keys.

Keys, all under `coverart:1:{name}:` (1 is the version of this layout, name is
COVER_ART_CACHE_NAME; names of MBIDs are in binary, see packing.py):

    b:{hhhh}   hash    files, listings and aliases of the MBIDs that begin with these four digits:
                       packed key -> packed entry or alias
    age        zset    packed file key -> rank in the order of eviction
    sum        hash    bytes, files, f0-f2 files by entity, a0-a2 aliases by entity; level and
                       policy of the order of eviction (eviction.py)
    tally      hash    what all processes did: hits, misses and a few more, direct_hits
    due:{n}    list    packed keys of aliases that were checked in minute n
    due        zset    the minutes that have such a list
    no:{hhh}   hash    absences of the MBIDs that share their first ten bits: packed key -> since
                       and until; 100 at most, gone by itself when the last is past its time
    doubt      set     packed keys of files that are being stored or removed: should the process be
                       killed at it, the leader looks which of the two came to pass
    odd        set     slices in which a file was not as the index said
    whole      string  run_id of the Redis that was told all that is on the disk; "garbled" once
                       something was found here that this program did not write
    fill       string  who fills the index from the disk, or began to
    lead       string  the elected leader; gone by itself (leases.py)
    get:{key}  string  who fetches a thing; gone by itself (leases.py)

A bucket stays small at any size of the cache (a 65,536th of it), so its hash is kept compact.
"""

from __future__ import annotations

from coverart.coordination.redis_client import Script

_COMMON = """
local p = ARGV[1]
-- Where what is no key of ours stands for one, it may have no third byte.
local function bucket(k) return p .. 'b:' .. string.format('%02x%02x', k:byte(2) or 0, k:byte(3) or 0) end
local function absences(k)
  return p .. 'no:' .. string.format('%03x', k:byte(2) * 4 + math.floor(k:byte(3) / 64))
end
local function absent(k) return redis.call('HGET', absences(k), k) end
local function whole() return redis.call('GET', p .. 'whole') end
local function not_absent(k) return redis.call('HDEL', absences(k), k) end
local function entity(k) return k:byte(1) % 16 end
-- struct.unpack returns the next position too: the parentheses drop it.
local function size_of(v) return (struct.unpack('>I4', v, 2)) end
local function checked(v) return (struct.unpack('>d', v, 27)) end
-- A time ahead of all clocks was written by one that was wrong, and counts for nothing.
local function counted(at, horizon) if at > horizon then return 0 end return at end
-- '%.0f' keeps what tostring() of a large number would round.
local function worth(v)
  local size = math.max(size_of(v), 4096)
  return math.floor(64 * (size + 1048576) / size)
end
local function level() return tonumber(redis.call('HGET', p .. 'sum', 'level') or 0) end
local function score(v, uses) return string.format('%.0f', (level() + uses * worth(v)) * 16 + uses) end
local function forget_file(k, v, evicted)
  local b = bucket(k)
  if redis.call('HGET', b, k) ~= v then return 0 end
  redis.call('HDEL', b, k)
  if evicted then
    local reached = math.floor(tonumber(redis.call('ZSCORE', p .. 'age', k) or 0) / 16)
    if reached > level() then
      redis.call('HSET', p .. 'sum', 'level', string.format('%.0f', reached))
    end
  end
  redis.call('ZREM', p .. 'age', k)
  redis.call('HINCRBY', p .. 'sum', 'bytes', -size_of(v))
  redis.call('HINCRBY', p .. 'sum', 'files', -1)
  redis.call('HINCRBY', p .. 'sum', 'f' .. entity(k), -1)
  redis.call('SADD', p .. 'doubt', k)
  return 1
end
local function put_file(k, v, rank)
  local b = bucket(k)
  local old = redis.call('HGET', b, k)
  redis.call('HSET', b, k, v)
  if rank == '' then rank = score(v, 1) end
  redis.call('ZADD', p .. 'age', rank, k)
  if old then
    -- What is no entry of ours was never counted.
    local counted = #old == #v and size_of(old) or 0
    redis.call('HINCRBY', p .. 'sum', 'bytes', size_of(v) - counted)
  else
    redis.call('HINCRBY', p .. 'sum', 'bytes', size_of(v))
    redis.call('HINCRBY', p .. 'sum', 'files', 1)
    redis.call('HINCRBY', p .. 'sum', 'f' .. entity(k), 1)
  end
  not_absent(k)
  redis.call('SREM', p .. 'doubt', k)
end
local function forget_alias(k)
  if redis.call('HDEL', bucket(k), k) == 0 then return 0 end
  redis.call('HINCRBY', p .. 'sum', 'a' .. entity(k), -1)
  return 1
end
local function put_alias(k, v, minute)
  if redis.call('HSET', bucket(k), k, v) == 1 then
    redis.call('HINCRBY', p .. 'sum', 'a' .. entity(k), 1)
  end
  if minute ~= '' then
    redis.call('RPUSH', p .. 'due:' .. minute, k)
    redis.call('ZADD', p .. 'due', minute, minute)
  end
  not_absent(k)
end
local function end_claims(first, error, life)
  for i = first, #ARGV, 2 do
    local lease = p .. 'get:' .. ARGV[i]
    if redis.call('GET', lease) == ARGV[i + 1] then
      if error and error ~= '' then redis.call('SET', lease, error, 'PX', life)
      else redis.call('DEL', lease) end
    end
    if error ~= '' then redis.call('SREM', p .. 'doubt', ARGV[i]) end
  end
end
-- Whether what is known of a name or a listing was asked for after that.
local function knows_later(k, at, horizon)
  local v, no, latest = redis.call('HGET', bucket(k), k), absent(k), 0
  if v and (#v == 13 or #v == 34) then latest = counted((struct.unpack('>d', v, #v - 7)), horizon) end
  if no and #no == 16 then latest = math.max(latest, counted((struct.unpack('>d', no)), horizon)) end
  return latest > counted(at, horizon)
end
"""

FIND_IMAGES = Script(
    _COMMON
    + """
local function find(key, size, own)
  local base = string.char(entity(key)) .. key:sub(2)
  if own == '1' then
    local held = redis.call('HMGET', bucket(base), base .. '\\0', base .. '\\1', base .. '\\2', base .. '\\3')
    if held[1] or held[2] or held[3] or held[4] then
      local entry = held[size:byte() + 1]
      local no = false
      if not entry then no = absent(base .. size) end
      return {false, entry, held[1], no}
    end
  end
  local alias = redis.call('HGET', bucket(key), key)
  -- One that is none of ours must not keep those beside it from their answers.
  if not alias or #alias ~= 34 then
    local no = absent(key)
    if not no and own == '1' then no = absent(base .. size) end
    return {false, false, false, no, 'unknown'}
  end
  local image = alias:sub(1, 1) .. alias:sub(3, 26) .. size
  local entry = redis.call('HGET', bucket(image), image)
  local no = false
  if not entry then no = absent(image) end
  return {alias, entry, false, no}
end
local found = {}
for i = 2, #ARGV, 3 do found[#found + 1] = find(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
found[#found + 1] = whole()
return found
""",
)

FIND_LISTING = Script(
    _COMMON
    + """
local entry = redis.call('HGET', bucket(ARGV[2]), ARGV[2])
return {entry, not entry and absent(ARGV[2]), whole()}
""",
)

CLAIM = Script(
    _COMMON
    + """
-- name, token, life in ms, whether it is a file's, whether the file is fetched even if it is held,
-- whether the caller waited: {what became of it, entry, absence}; 1: taken, 0: held, -1: wait;
-- or the error of the one that was waited for
local k, entry, no = ARGV[2], false, false
if ARGV[5] == '1' then
  entry = redis.call('HGET', bucket(k), k)
  if not entry then no = absent(k) end
end
if entry and #entry == 13 and ARGV[6] == '0' then return {0, entry, no} end
local lease = p .. 'get:' .. k
local owner = redis.call('GET', lease)
if owner and owner:sub(1, 1) ~= '-' then
  local left, life = redis.call('PTTL', lease), tonumber(ARGV[4])
  -- Another program wrote it, or the server's clock was set back: no lease of ours is so long.
  if left < 0 or left > life then redis.call('PEXPIRE', lease, life) end
  return {-1, entry, no}
end
if owner and ARGV[7] == '1' then return {owner, entry, no} end
redis.call('SET', lease, ARGV[3], 'PX', ARGV[4])
if ARGV[5] == '1' then redis.call('SADD', p .. 'doubt', k) end
return {1, entry, no}
""",
)

STORE = Script(
    _COMMON
    + """
-- key, entry, rank, whether it is a listing's, up to when times count; of an alias key, value and
-- minute, or empty; names and tokens of claims that end: whether file and alias were taken
local horizon, file, alias = tonumber(ARGV[6]), 1, 1
if ARGV[5] == '1' and knows_later(ARGV[2], (struct.unpack('>d', ARGV[3], 6)), horizon) then
  file = 0
else
  put_file(ARGV[2], ARGV[3], ARGV[4])
end
if ARGV[7] ~= '' then
  if knows_later(ARGV[7], checked(ARGV[8]), horizon) then alias = 0
  else put_alias(ARGV[7], ARGV[8], ARGV[9]) end
end
end_claims(10)
return {file, alias}
""",
    grows=True,
)

END_CLAIMS = Script(
    _COMMON
    + """
-- an error as JSON behind a minus, or empty; how long it stays in ms; names and tokens
end_claims(4, ARGV[2], ARGV[3])
"""
)

RENEW_LOCKS = Script(
    """
-- life in ms, names and tokens
for i = 3, #ARGV, 2 do
  local lease = ARGV[1] .. 'get:' .. ARGV[i]
  if redis.call('GET', lease) == ARGV[i + 1] then redis.call('PEXPIRE', lease, ARGV[2]) end
end
"""
)

PUT_FILE = Script(
    _COMMON
    + """
-- key, entry, rank, and for a listing up to when times count
local k, v, horizon = ARGV[2], ARGV[3], tonumber(ARGV[5])
if horizon and knows_later(k, (struct.unpack('>d', v, 6)), horizon) then return 0 end
put_file(k, v, ARGV[4])
return 1
""",
    grows=True,
)

FORGET_FILES = Script(
    _COMMON
    + """
if ARGV[2] ~= '' and redis.call('GET', p .. 'lead') ~= ARGV[2] then return false end
local evicted = ARGV[3] == 'least-useful'
local gone = {}
for i = 4, #ARGV, 2 do gone[#gone + 1] = forget_file(ARGV[i], ARGV[i + 1], evicted) end
return gone
"""
)

USE = Script(
    _COMMON
    + """
for i = 2, #ARGV, 2 do
  local k = ARGV[i]
  local known = redis.call('ZSCORE', p .. 'age', k)
  local v = redis.call('HGET', bucket(k), k)
  if known and v then
    local uses = math.min(15, tonumber(known) % 16 + tonumber(ARGV[i + 1]))
    redis.call('ZADD', p .. 'age', 'GT', score(v, uses), k)
  end
end
"""
)

RERANK = Script(
    _COMMON
    + """
-- a slice, and whether by age (else by use, each file having been used once)
for i = 0, 15 do
  local b = p .. 'b:' .. ARGV[2] .. string.format('%x', i)
  local cursor = '0'
  repeat
    local page = redis.call('HSCAN', b, cursor, 'COUNT', 1000)
    cursor = page[1]
    for j = 1, #page[2], 2 do
      local k, v = page[2][j], page[2][j + 1]
      if k:byte(1) < 32 then
        local rank = score(v, 1)
        if ARGV[3] == '1' then rank = string.format('%.6f', (struct.unpack('>d', v, 6))) end
        redis.call('ZADD', p .. 'age', rank, k)
      end
    end
  until cursor == '0'
end
"""
)

PUT_ALIAS = Script(
    _COMMON
    + """
if knows_later(ARGV[2], checked(ARGV[3]), tonumber(ARGV[5])) then return 0 end
put_alias(ARGV[2], ARGV[3], ARGV[4])
return 1
""",
    grows=True,
)

FORGET_ALIAS = Script(_COMMON + "return forget_alias(ARGV[2])")

PUT_ABSENCE = Script(
    _COMMON
    + """
-- key, since and until, life in ms, whether it is an alias; up to when times count, not for an image;
-- names and tokens of claims that end
local horizon = tonumber(ARGV[6])
end_claims(7)
if horizon and knows_later(ARGV[2], (struct.unpack('>d', ARGV[3])), horizon) then return 0 end
local k, now = ARGV[2], struct.unpack('>d', ARGV[3])
local b = absences(k)
if ARGV[5] == '1' then forget_alias(k) end
-- Put anew, it stands behind all others: a small hash keeps the order in which it was filled.
redis.call('HDEL', b, k)
redis.call('HSET', b, k, ARGV[3])
if redis.call('HLEN', b) > 100 then
  local all, first = redis.call('HGETALL', b), true
  for i = 1, #all, 2 do
    local over = true
    if #all[i + 1] == 16 then
      local since, till = struct.unpack('>dd', all[i + 1])
      over = till + till - since <= now
    end
    if over or first then redis.call('HDEL', b, all[i]) end
    first = false
  end
end
if redis.call('PTTL', b) < tonumber(ARGV[4]) then redis.call('PEXPIRE', b, ARGV[4]) end
return 1
"""
)

FORGET_ABSENCE = Script(_COMMON + "return not_absent(ARGV[2])")

LEARN = Script(
    _COMMON
    + """
local horizon = tonumber(ARGV[2])
for i = 3, #ARGV, 3 do
  local k, v, extra = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local old = redis.call('HGET', bucket(k), k)
  if k:byte(1) >= 32 then
    if not old or counted(checked(old), horizon) < counted(checked(v), horizon) then
      put_alias(k, v, extra)
    end
  elseif not old then
    put_file(k, v, extra)
  end
end
"""
)

TALLY = Script(
    _COMMON + "for i = 2, #ARGV, 2 do redis.call('HINCRBY', p .. 'tally', ARGV[i], ARGV[i + 1]) end"
)

_TOTALS = """redis.call('HMGET', p .. 'sum', 'bytes', 'files', 'f0', 'f1', 'f2', 'a0', 'a1', 'a2'),
  redis.call('ZRANGE', p .. 'age', 0, 0, 'WITHSCORES'), redis.call('GET', p .. 'lead'),
  redis.call('HGETALL', p .. 'tally')
"""

TOTALS = Script(_COMMON + f"return {{{_TOTALS}}}")

WHOLE = Script(_COMMON + f"return {{redis.call('GET', p .. 'whole'), {_TOTALS}}}")

OLDEST = Script(
    _COMMON
    + """
local found = {}
for _, k in ipairs(redis.call('ZRANGE', p .. 'age', 0, tonumber(ARGV[2]) - 1)) do
  local v = redis.call('HGET', bucket(k), k)
  if v then found[#found + 1] = k; found[#found + 1] = v
  else redis.call('ZREM', p .. 'age', k) end
end
return found
"""
)

DUE_ALIASES = Script(
    _COMMON
    + """
if redis.call('GET', p .. 'lead') ~= ARGV[4] and ARGV[4] ~= '' then return {} end
local found, left, seen = {}, tonumber(ARGV[3]), {}
while left > 0 do
  local first = redis.call('ZRANGEBYSCORE', p .. 'due', '-inf', ARGV[2], 'LIMIT', 0, 1)[1]
    or redis.call('ZRANGEBYSCORE', p .. 'due', '(' .. ARGV[5], '+inf', 'LIMIT', 0, 1)[1]
  if not first then break end
  local k = redis.call('LPOP', p .. 'due:' .. first)
  if not k then
    redis.call('ZREM', p .. 'due', first)
  else
    left = left - 1
    local v = redis.call('HGET', bucket(k), k)
    -- One that was checked again since stands in a later list.
    if v and not seen[k] and math.floor(checked(v) / 60) == tonumber(first) then
      seen[k] = true
      found[#found + 1] = k; found[#found + 1] = v
    end
  end
end
return found
"""
)

SLICE = Script(
    _COMMON
    + """
local found = {}
for i = 0, 15 do
  local b = p .. 'b:' .. ARGV[2] .. string.format('%x', i)
  local cursor = '0'
  repeat
    local page = redis.call('HSCAN', b, cursor, 'COUNT', 1000)
    cursor = page[1]
    for _, word in ipairs(page[2]) do found[#found + 1] = word end
  until cursor == '0'
end
return found
""",
)

HELD_SLICES = Script(
    _COMMON
    + """
-- which slices of a number of them, from the first on, hold anything
local found = {}
for slice = tonumber(ARGV[2]), ARGV[2] + ARGV[3] - 1 do
  for i = 0, 15 do
    if redis.call('EXISTS', p .. 'b:' .. string.format('%03x%x', slice, i)) == 1 then
      found[#found + 1] = slice
      break
    end
  end
end
return found
"""
)

SETTLE = Script(_COMMON + "for i = 2, #ARGV do redis.call('SREM', p .. 'doubt', ARGV[i]) end")

DOUBTFUL = Script(
    _COMMON
    + """
local found = {}
local kind = redis.call('TYPE', p .. 'doubt').ok
if kind ~= 'set' then
  if kind ~= 'none' then redis.call('DEL', p .. 'doubt') end
  return found
end
for _, k in ipairs(redis.call('SRANDMEMBER', p .. 'doubt', ARGV[2])) do
  if redis.call('EXISTS', p .. 'get:' .. k) == 0 then found[#found + 1] = k end
end
return found
""",
)

ODD_SLICES = Script(
    _COMMON
    + """
local odd = redis.call('SMEMBERS', p .. 'odd')
redis.call('DEL', p .. 'odd')
return odd
"""
)

SUSPECT = Script(_COMMON + "redis.call('SADD', p .. 'odd', ARGV[2])")

DROP = Script(
    _COMMON
    + """
-- what is in the order of eviction and no file's key
for i = 2, #ARGV do redis.call('ZREM', p .. 'age', ARGV[i]) end
"""
)

RANKED = Script(_COMMON + "redis.call('HSET', p .. 'sum', 'policy', ARGV[2])")

GARBLED = Script(
    _COMMON
    + """
if redis.pcall('GET', p .. 'whole') == 'garbled' then return 0 end
redis.call('SET', p .. 'whole', 'garbled')
return 1
"""
)

FILL = Script(_COMMON + "redis.call('DEL', p .. 'whole') redis.call('SET', p .. 'fill', ARGV[2])")

SET_WHOLE = Script(
    _COMMON
    + """
-- by whom it was filled, and the run_id: unless another began since, or something was garbled
if redis.call('GET', p .. 'fill') ~= ARGV[2] then return end
redis.call('DEL', p .. 'fill')
redis.call('SET', p .. 'whole', ARGV[3], 'NX')
"""
)

ACQUIRE = Script(
    """
-- key, owner, life in ms, set for what may be left half done, member of it (none where empty):
-- -1 if it is the caller's now, else how long it still is another's
if redis.call('SET', ARGV[1], ARGV[2], 'NX', 'PX', ARGV[3]) then
  if ARGV[5] ~= '' then redis.call('SADD', ARGV[4], ARGV[5]) end
  return -1
end
local left = redis.call('PTTL', ARGV[1])
if left < 0 or left > tonumber(ARGV[3]) then
  -- Another program wrote it, or the server's clock was set back: no lease of ours is so long.
  redis.call('PEXPIRE', ARGV[1], ARGV[3])
  return tonumber(ARGV[3])
end
return left
""",
    grows=True,
)

RENEW = Script(
    """
if redis.call('GET', ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('PEXPIRE', ARGV[1], ARGV[3])
""",
    writes=True,
)

RELEASE = Script(
    """
-- key, owner, channel, what to tell those who wait (none where the channel is empty), set of what
-- may be left half done, member of it that is not (none where empty)
if ARGV[6] ~= '' then redis.call('SREM', ARGV[5], ARGV[6]) end
if redis.call('GET', ARGV[1]) == ARGV[2] then redis.call('DEL', ARGV[1]) end
if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
"""
)
