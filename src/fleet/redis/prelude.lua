-- Stands before every script of the fleet: the time, and when a runner lives.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function is_recent(heard, silent_ms)
    return heard and now - tonumber(heard) <= tonumber(silent_ms)
end

-- Whether the stream has not closed, and the node that has it.
local function place_of(stream)
    local attached, node = string.match(stream, '^(%d):%d+:(.*)$')
    return attached == '1', node
end

-- Whether one runner lives, as `heard` and `nodes_heard` say.
local function lives(runner, stream, heard, nodes_heard, silent_ms, node_silent_ms)
    local is_attached, node = place_of(stream)
    return is_attached
        and is_recent(redis.call('ZSCORE', heard, runner), silent_ms)
        and is_recent(redis.call('ZSCORE', nodes_heard, node), node_silent_ms)
end
