-- Takes away leases whose time is over.
--
-- KEYS: deadlines, holders, by_holder, home, alive, grace.
-- ARGV: how many at most, the name of the caller's database, the caller's name, how long `alive` lasts in ms, and the
-- grace in ms.
-- Answers the home's name, in how many ms the next lease lapses (-1: there is none), then of each lease taken away itself
-- and its holder, behind a for an accepted one and h for another.

local deadlines, holders, by_holder, home, alive, grace = unpack(KEYS)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The memory of Redis has a name. Another name than before tells that it was lost.
local name = redis.call('GET', home)
if not name then
  name = ARGV[2] .. ' ' .. time[1] .. '.' .. time[2] .. '.' .. ARGV[3]
  redis.call('SET', home, name)
end
if string.sub(name, 1, #ARGV[2] + 1) ~= ARGV[2] .. ' ' then
  return { name, -1 }
end

-- Where nobody asked for a while, Redis was down or out of reach, or everybody else was; in that time no lease could be
-- renewed. All leases get some grace then.
if redis.call('EXISTS', alive) == 0 and redis.call('ZCARD', deadlines) > 0 then
  redis.call('SET', grace, 1, 'PX', ARGV[5])
end
redis.call('SET', alive, 1, 'PX', ARGV[4])
local left = redis.call('PTTL', grace)
if left > 0 then
  return { name, left }
end

local answer = { name, -1 }
local due = redis.call('ZRANGE', deadlines, '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1])
if #due > 0 then
  local known, indexed = redis.call('HMGET', holders, unpack(due)), {}
  for i = 1, #due do
    local held = known[i] or 'h'
    indexed[i] = string.sub(held, 2) .. '\0' .. due[i]
    answer[2 * i + 1], answer[2 * i + 2] = due[i], held
  end
  redis.call('ZREM', deadlines, unpack(due))
  redis.call('HDEL', holders, unpack(due))
  redis.call('ZREM', by_holder, unpack(indexed))
end
local next = redis.call('ZRANGE', deadlines, 0, 0, 'WITHSCORES')
if next[2] then
  answer[2] = math.max(0, next[2] - now)
end
return answer
