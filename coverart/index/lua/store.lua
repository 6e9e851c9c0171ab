-- include changes
-- Where claims begin; keys and values; names and tokens of claims. Whether each was taken.
local claims, taken = tonumber(ARGV[3]), {}
for i = 4, claims - 1, 2 do
  local later = knows_later(ARGV[i], time_of(ARGV[i + 1]))
  if not later then put(ARGV[i], ARGV[i + 1]) end
  taken[#taken + 1] = later and 0 or 1
end
end_claims(claims)
return taken
