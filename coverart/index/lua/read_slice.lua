-- Three digits of a slice: its keys and values.
local found = {}
for i = 0, 15 do
  for _, word in ipairs(redis.call('HGETALL', KEYS[1] .. 'b:' .. ARGV[1] .. string.format('%x', i))) do
    found[#found + 1] = word
  end
end
return found
