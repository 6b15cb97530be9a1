-- Takes jobs of some channels, the longest waiting first among the heads of their lines.
--
-- KEYS: for each channel window, jobs, more, quiet.
-- ARGV: how many at most, how few jobs are low, then for each channel 1 where somebody else of this node waits for it.
-- Answers for each channel a list: how many jobs are left, its hunger, then of each job its place and what was kept of
-- it. Hunger is 1 for a hungry channel, 1 + n where another node looks into the store and has n ms for it, -1 where the store
-- may hold more and enough is at hand, and 0 where the store holds no more.

local max, low = tonumber(ARGV[1]), tonumber(ARGV[2])
local channels = #KEYS / 4

local sizes, counts, filled = {}, {}, {}
for c = 1, channels do
  sizes[c], counts[c] = redis.call('ZCARD', KEYS[4 * c - 3]), 0
  if sizes[c] > 0 then
    filled[#filled + 1] = c
  end
end

-- When a job became ready, in microseconds; Lua's own comparison of strings follows the server's language.
local function ready_at(place)
  local number = 0
  for i = 5, 12 do
    number = number * 256 + string.byte(place, i)
  end
  return number
end

local taken = 0
if #filled == 1 then
  local c = filled[1]
  counts[c] = math.min(max, sizes[c])
  taken = counts[c]
elseif #filled > 1 then
  local lines = {}
  for i, c in ipairs(filled) do
    lines[i] = redis.call('ZRANGE', KEYS[4 * c - 3], 0, max - 1)
    for place = 1, #lines[i] do
      lines[i][place] = ready_at(lines[i][place])
    end
  end
  while taken < max do
    local first, earliest
    for i, c in ipairs(filled) do
      local head = lines[i][counts[c] + 1]
      if head and (not earliest or head < earliest) then
        first, earliest = c, head
      end
    end
    if not first then
      break
    end
    counts[first] = counts[first] + 1
    taken = taken + 1
  end
end

local now
local function hunger(c)
  local state = redis.call('GET', KEYS[4 * c - 1])
  if not state then
    return 0
  end
  if sizes[c] - counts[c] > low then
    return -1
  end
  if string.sub(state, 1, 1) == 'u' then
    return 1
  end
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return 1 + math.max(0, tonumber(string.match(state, '^a(%d+) ')) - now)
end

local answer = {}
for c = 1, channels do
  local list = { sizes[c] - counts[c], hunger(c) }
  if counts[c] > 0 then
    local popped = redis.call('ZPOPMIN', KEYS[4 * c - 3], counts[c])
    local ids = {}
    for i = 1, #popped, 2 do
      ids[#ids + 1] = string.sub(popped[i], 13)
    end
    local kept = redis.call('HMGET', KEYS[4 * c - 2], unpack(ids))
    redis.call('HDEL', KEYS[4 * c - 2], unpack(ids))
    for i = 1, #ids do
      list[2 * i + 1] = popped[2 * i - 1]
      list[2 * i + 2] = kept[i] and string.sub(kept[i], 13) or ''
    end
  end
  if taken < max or ARGV[2 + c] == '1' then
    redis.call('DEL', KEYS[4 * c])
  end
  answer[c] = list
end
return answer
