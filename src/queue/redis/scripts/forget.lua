-- Removes jobs from one channel's line.
--
-- KEYS: window, jobs, late. ARGV: ids.

local window, jobs, late = unpack(KEYS)
local known = redis.call('HMGET', jobs, unpack(ARGV))
local places, ids = {}, {}
for i = 1, #ARGV do
  if known[i] then
    places[#places + 1] = string.sub(known[i], 1, 12) .. ARGV[i]
    ids[#ids + 1] = ARGV[i]
  end
end
if #ids > 0 then
  redis.call('ZREM', window, unpack(places))
  redis.call('ZREM', late, unpack(places))
  redis.call('HDEL', jobs, unpack(ids))
end
return #ids
