-- Lines up what a look into the store has found in one channel.
--
-- KEYS: window, jobs, more, quiet, late.
-- ARGV: the window's size, how few jobs are low, the channel for messages, the end of the message, whose look it was, and
-- what comes of it: part (another call follows), complete (the store holds no more), or incomplete; then places.
-- Answers 1 where the channel is hungry, 0 otherwise.

local window, jobs, more, quiet, late = unpack(KEYS)
local window_max, low = tonumber(ARGV[1]), tonumber(ARGV[2])
local look, verdict = ARGV[5], ARGV[6]

local ids = {}
for i = 7, #ARGV do
  ids[#ids + 1] = string.sub(ARGV[i], 13)
end
if #ids > 0 then
  local known = redis.call('HMGET', jobs, unpack(ids))
  local moved, added, kept = {}, {}, {}
  for i = 1, #ids do
    local place = ARGV[6 + i]
    local head = string.sub(place, 1, 12)
    local before = known[i] and string.sub(known[i], 1, 12)
    if before ~= head then
      if before then
        moved[#moved + 1] = before .. ids[i]
      end
      kept[#kept + 1] = ids[i]
      kept[#kept + 1] = head
    end
    -- Also where it is known already: it may be among the late ones.
    added[#added + 1] = 0
    added[#added + 1] = place
  end
  if #moved > 0 then
    redis.call('ZREM', window, unpack(moved))
    redis.call('ZREM', late, unpack(moved))
  end
  if #kept > 0 then
    redis.call('HSET', jobs, unpack(kept))
  end
  redis.call('ZADD', window, unpack(added))
  if redis.call('EXISTS', late) == 1 then
    local places = {}
    for i = 1, #ids do
      places[i] = ARGV[6 + i]
    end
    redis.call('ZREM', late, unpack(places))
  end
end

local function forget(places)
  for i = 1, #places do
    places[i] = string.sub(places[i], 13)
  end
  redis.call('HDEL', jobs, unpack(places))
end

-- Leaves what is beyond the window's size to another look. Answers the state after it.
local function cut(state)
  local beyond = redis.call('ZCARD', window) - window_max
  if beyond <= 0 then
    return state
  end
  while beyond > 0 do
    local popped, places = redis.call('ZPOPMAX', window, math.min(beyond, 2000)), {}
    for i = 1, #popped, 2 do
      places[#places + 1] = popped[i]
    end
    forget(places)
    beyond = beyond - #places
  end
  return state_of_cut(window, state)
end

local state = redis.call('GET', more)
local is_ours = verdict ~= 'part' and state and string.match(state, '^a%d+ (%S+) ') == look
if is_ours and verdict == 'complete' then
  state = false
  redis.call('ZUNIONSTORE', window, 2, window, late)
  redis.call('DEL', late)
elseif is_ours then
  -- The next look begins behind what was read; a late job in front of that may be younger than the look.
  local read_until = #ARGV > 6 and ARGV[#ARGV] or seen_of(state)
  local within = read_until == '' and {} or redis.call('ZRANGE', late, '-', '[' .. read_until, 'BYLEX', 'LIMIT', 0, 2000)
  while #within > 0 do
    redis.call('ZREM', late, unpack(within))
    local added = {}
    for i = 1, #within do
      added[2 * i - 1], added[2 * i] = 0, within[i]
    end
    redis.call('ZADD', window, unpack(added))
    within = redis.call('ZRANGE', late, '-', '[' .. read_until, 'BYLEX', 'LIMIT', 0, 2000)
  end
  state = 'u' .. read_until
end
state = cut(state)
local is_unseen = state and string.sub(state, 1, 1) == 'u'
if is_unseen then
  redis.call('SET', more, state, 'EX', 86400)
elseif not state then
  redis.call('DEL', more)
end

local size = redis.call('ZCARD', window)
if size > 0 then
  redis.call('EXPIRE', window, 86400)
  redis.call('EXPIRE', jobs, 86400)
  if verdict ~= 'part' and redis.call('EXISTS', quiet) == 0 then
    redis.call('PUBLISH', ARGV[3], size .. ARGV[4])
    redis.call('SET', quiet, 1, 'EX', 10)
  end
end
return is_unseen and size <= low and 1 or 0
