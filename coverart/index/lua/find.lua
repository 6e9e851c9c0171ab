-- include keys
-- Of a listing its key and two empty words. Of a name its key, the size as it ends an image's key, and
-- '1' if it may be an image's own. Of each: entry, absence, alias; and if a size of the name's own image
-- is held, the entry of the original, and 1. At the end: what is known of whether the index is whole.
local function file(k, ...)
  local entry = redis.call('HGET', bucket(k), k)
  return {entry, not entry and absent(k), ...}
end
local function find(k, size, own)
  if size == '' then return file(k, false, false, false) end
  local base = string.char(k:byte(1) % 16) .. k:sub(2)
  if own == '1' then
    local held = redis.call('HMGET', bucket(base), base .. '\0', base .. '\1', base .. '\2', base .. '\3')
    if held[1] or held[2] or held[3] or held[4] then
      local entry = held[size:byte() + 1]
      return {entry, not entry and absent(base .. size), false, held[1], 1}
    end
  end
  local alias = redis.call('HGET', bucket(k), k)
  -- One that is none of ours must not keep those beside it from their answers.
  if alias and #alias == 34 then
    return file(alias:sub(1, 1) .. alias:sub(3, 26) .. size, alias, false, false)
  end
  return {false, absent(k) or own == '1' and absent(base .. size), false, false, false}
end
local found = {}
for i = 1, #ARGV, 3 do found[#found + 1] = find(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
found[#found + 1] = redis.call('GET', p .. 'whole')
return found
