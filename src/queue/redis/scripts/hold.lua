-- Gives leases that nobody holds.
--
-- KEYS: deadlines, holders, by_holder. ARGV: for how many ms, to whom, then the leases.
-- Answers which of them were held, by their numbers from 1.

local deadlines, holders, by_holder = unpack(KEYS)
local time = redis.call('TIME')
local deadline = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
local holder = ARGV[2]

local leases = {}
for i = 3, #ARGV do
  leases[#leases + 1] = ARGV[i]
end
local known = redis.call('HMGET', holders, unpack(leases))
local refused, timed, held, indexed = {}, {}, {}, {}
for i = 1, #leases do
  if known[i] then
    refused[#refused + 1] = i
  else
    timed[#timed + 1], timed[#timed + 2] = deadline, leases[i]
    held[#held + 1], held[#held + 2] = leases[i], 'h' .. holder
    indexed[#indexed + 1], indexed[#indexed + 2] = 0, holder .. '\0' .. leases[i]
  end
end
if #timed > 0 then
  redis.call('ZADD', deadlines, unpack(timed))
  redis.call('HSET', holders, unpack(held))
  redis.call('ZADD', by_holder, unpack(indexed))
end
return refused
