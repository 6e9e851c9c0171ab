-- KEYS of every script: the prefix of the index's keys, and that of the locks.
local p, locks = KEYS[1], KEYS[2]
-- Where what is no key of ours stands for one, it may have no third byte.
local function bucket(k) return p .. 'b:' .. string.format('%02x%02x', k:byte(2) or 0, k:byte(3) or 0) end
local function absences(k) return p .. 'no:' .. string.format('%03x', k:byte(2) * 4 + math.floor(k:byte(3) / 64)) end
local function absent(k) return redis.call('HGET', absences(k), k) end
local function is_alias(k) return k:byte(1) >= 32 end
local function entity(k) return k:byte(1) % 16 end
-- Whether a name is a front or a back; the others are ids, which do not age.
local function is_role(k)
  local name = k:sub(18)
  return name == ('\0'):rep(8) or name == '\127' .. ('\255'):rep(7)
end
