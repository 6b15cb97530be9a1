-- Asks for the right to look into the store for one channel.
--
-- KEYS: window, jobs, more, late.
-- ARGV: how few jobs are low, the look's name, how long it may take in ms.
-- Answers -1 and the place behind which to look, none for the front; 0: the channel is not hungry; n: another looks, and has
-- n ms for it.

local window, jobs, more, late = unpack(KEYS)
local state = redis.call('GET', more)
if not state or redis.call('ZCARD', window) > tonumber(ARGV[1]) then
  return { 0 }
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local is_asked = string.sub(state, 1, 1) == 'a'
if is_asked then
  local left = tonumber(string.match(state, '^a(%d+) ')) - now
  if left > 0 then
    return { left }
  end
end
-- What was offered before the look begins is in the store by then.
local places = redis.call('ZRANGE', late, 0, 1999)
while #places > 0 do
  redis.call('ZREM', late, unpack(places))
  for i = 1, #places do
    places[i] = string.sub(places[i], 13)
  end
  redis.call('HDEL', jobs, unpack(places))
  places = redis.call('ZRANGE', late, 0, 1999)
end
-- A look that took too long may have lined up anything, or nothing.
local seen = is_asked and '' or string.sub(state, 2)
redis.call('SET', more, string.format('a%d ', now + ARGV[3]) .. ARGV[2] .. ' ' .. seen, 'EX', 86400)
return { -1, seen }
