-- Lets all leases of a holder lapse within some time.
--
-- KEYS: deadlines, by_holder. ARGV: within how many ms, the holder.

local deadlines, by_holder = unpack(KEYS)
local time = redis.call('TIME')
local latest = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
local prefix = ARGV[2] .. '\0'
local leases = redis.call('ZRANGE', by_holder, '[' .. prefix, '(' .. ARGV[2] .. '\1', 'BYLEX')
for i = 1, #leases do
  -- Never lengthens one, and never brings one back.
  redis.call('ZADD', deadlines, 'XX', 'LT', latest, string.sub(leases[i], #prefix + 1))
end
return #leases
