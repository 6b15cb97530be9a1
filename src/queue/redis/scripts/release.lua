-- Ends leases, whoever holds them.
--
-- KEYS: deadlines, holders, by_holder. ARGV: the leases.

local deadlines, holders, by_holder = unpack(KEYS)
local known = redis.call('HMGET', holders, unpack(ARGV))
local held, indexed = {}, {}
for i = 1, #ARGV do
  if known[i] then
    held[#held + 1] = ARGV[i]
    indexed[#indexed + 1] = string.sub(known[i], 2) .. '\0' .. ARGV[i]
  end
end
if #held > 0 then
  redis.call('ZREM', deadlines, unpack(held))
  redis.call('HDEL', holders, unpack(held))
  redis.call('ZREM', by_holder, unpack(indexed))
end
return #held
