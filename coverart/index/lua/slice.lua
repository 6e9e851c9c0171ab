-- Three digits of a slice: its keys and values.
local function slice(digits)
  local found = {}
  for i = 0, 15 do
    for _, word in ipairs(redis.call('HGETALL', KEYS[1] .. 'b:' .. digits .. string.format('%x', i))) do
      found[#found + 1] = word
    end
  end
  return found
end
