-- include keys
-- How many sizes there are; keys of listings, and of names with the size as it ends an image's key.
-- Of each: entry, absence, alias; and if a size of the name's own image is held, the entry of the
-- original, and 1. At the end: what is known of whether the index is whole.
local function file(k, ...)
  local entry = redis.call('HGET', bucket(k), k)
  return {entry, not entry and absent(k), ...}
end
local function find(word)
  if #word == 17 then return file(word) end
  local k, size = word:sub(1, 25), word:sub(26)
  local base = string.char(entity(k)) .. k:sub(2)
  -- A group owns no image.
  local own = entity(k) ~= 1 and not is_role(k)
  if own then
    local sizes, any = {}, false
    for code = 0, ARGV[1] - 1 do sizes[code + 1] = base .. string.char(code) end
    local held = redis.call('HMGET', bucket(base), unpack(sizes))
    for _, entry in ipairs(held) do any = any or entry end
    if any then
      local entry = held[size:byte() + 1]
      return {entry, not entry and absent(base .. size), false, held[1], 1}
    end
  end
  local alias = redis.call('HGET', bucket(k), k)
  -- One that is none of ours must not keep those beside it from their answers.
  if alias and #alias == 34 then return file(alias:sub(1, 1) .. alias:sub(3, 26) .. size, alias) end
  return {false, absent(k) or own and absent(base .. size)}
end
local found = {}
for i = 2, #ARGV do found[i - 1] = find(ARGV[i]) end
found[#ARGV] = redis.call('GET', p .. 'whole')
return found
