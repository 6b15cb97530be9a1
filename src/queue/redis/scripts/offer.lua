-- Lines jobs up in one channel.
--
-- KEYS: window, jobs, more, quiet, late.
-- ARGV: the window's size, how few jobs are low, the channel for messages, the end of the message; then for each job its
-- place and what is kept of it. No id twice.
-- Answers 1 where the channel is hungry, 0 otherwise.

local window, jobs, more, quiet, late = unpack(KEYS)
local window_max, low = tonumber(ARGV[1]), tonumber(ARGV[2])
local state = redis.call('GET', more)
local is_asked = state and string.sub(state, 1, 1) == 'a'
local seen = state and seen_of(state)

local ids = {}
for i = 5, #ARGV, 2 do
  ids[#ids + 1] = string.sub(ARGV[i], 13)
end
local known = redis.call('HMGET', jobs, unpack(ids))

-- What is lined up at this place already stays; what is lined up elsewhere moves.
local moved, added, kept = {}, {}, {}
for i = 1, #ids do
  local place = ARGV[3 + 2 * i]
  local head = string.sub(place, 1, 12)
  local before = known[i] and string.sub(known[i], 1, 12)
  if before ~= head then
    if before then
      moved[#moved + 1] = before .. ids[i]
    end
    added[#added + 1] = 0
    added[#added + 1] = place
    kept[#kept + 1] = ids[i]
    kept[#kept + 1] = head .. ARGV[4 + 2 * i]
  end
end
if #added == 0 then
  return 0
end
if #moved > 0 then
  redis.call('ZREM', window, unpack(moved))
  redis.call('ZREM', late, unpack(moved))
end

local function leave_to_a_refill(places)
  for i = 1, #places do
    places[i] = string.sub(places[i], 13)
  end
  redis.call('HDEL', jobs, unpack(places))
end

local lined_up = #added / 2
local last = state and redis.call('ZRANGE', window, -1, -1)[1]
redis.call('HSET', jobs, unpack(kept))
redis.call('ZADD', window, unpack(added))
if state then
  -- The store may hold jobs that come before whatever sorts behind the window, and behind what was seen.
  local behind = redis.call('ZRANGE', window, last and '(' .. last or '-', '+', 'BYLEX')
  if seen ~= '' then
    local unseen = redis.call('ZRANGE', window, '(' .. seen, '+', 'BYLEX')
    behind = #unseen < #behind and unseen or behind
  end
  lined_up = lined_up - #behind
  if #behind > 0 then
    redis.call('ZREM', window, unpack(behind))
    if is_asked and redis.call('ZCARD', late) + #behind <= window_max then
      local waiting = {}
      for i = 1, #behind do
        waiting[2 * i - 1], waiting[2 * i] = 0, behind[i]
      end
      redis.call('ZADD', late, unpack(waiting))
      redis.call('EXPIRE', late, 86400)
    else
      leave_to_a_refill(behind)
      state = 'u' .. seen
    end
  end
end

local size = redis.call('ZCARD', window)
if size > window_max then
  -- More than were added only where the window's size was set anew.
  local popped = redis.call('ZPOPMAX', window, math.min(size - window_max, 2000))
  local beyond = {}
  for i = 1, #popped, 2 do
    beyond[#beyond + 1] = popped[i]
  end
  leave_to_a_refill(beyond)
  state = state_of_cut(window, state)
  lined_up = lined_up - #beyond
end
local is_unseen = state and string.sub(state, 1, 1) == 'u'
if is_unseen then
  redis.call('SET', more, state, 'EX', 86400)
end
redis.call('EXPIRE', window, 86400)
redis.call('EXPIRE', jobs, 86400)
if lined_up > 0 and redis.call('EXISTS', quiet) == 0 then
  redis.call('PUBLISH', ARGV[3], lined_up .. ARGV[4])
  redis.call('SET', quiet, 1, 'EX', 10)
end
return is_unseen and size <= low and 1 or 0
