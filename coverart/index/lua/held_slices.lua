-- The first slice and how many: those of which anything is known.
local found = {}
for slice = tonumber(ARGV[1]), ARGV[1] + ARGV[2] - 1 do
  for i = 0, 15 do
    if redis.call('EXISTS', KEYS[1] .. 'b:' .. string.format('%03x%x', slice, i)) == 1 then
      found[#found + 1] = slice
      break
    end
  end
end
return found
