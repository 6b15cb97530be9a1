-- In front of the scripts that line jobs up: what the state of a channel, its `more`, says of the next look into the store.

-- The place behind which it begins; empty: at the front.
local function seen_of(state)
  return string.match(state, '^a%d+ %S+ (.*)$') or string.sub(state, 2)
end

-- The state once a window's end was cut off: the look begins at its new end, or in front of that where no more was seen.
local function state_of_cut(window, state)
  local seen = state and seen_of(state)
  if not state or redis.call('ZLEXCOUNT', window, seen == '' and '-' or '(' .. seen, '+') == 0 then
    seen = redis.call('ZRANGE', window, -1, -1)[1]
  end
  return 'u' .. seen
end

