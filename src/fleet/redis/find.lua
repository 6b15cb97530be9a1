-- One runner, in a list that is empty where it is not known: its presence, its stream, and 1 where it lives.
-- KEYS runners, sessions, streams, heard, nodes_heard
-- ARGV silent_ms, node_silent_ms, runner
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local runner = ARGV[3]
local presence = redis.call('HGET', KEYS[1], runner)
local stream = redis.call('HGET', KEYS[3], runner)
if not presence or not stream then
    return {}
end
local attached, node = string.match(stream, '^(%d):%d+:(.*)$')
local heard = tonumber(redis.call('ZSCORE', KEYS[4], runner) or 0)
local node_heard = tonumber(redis.call('ZSCORE', KEYS[5], node) or 0)
local lives = attached == '1' and now - heard <= tonumber(ARGV[1]) and now - node_heard <= tonumber(ARGV[2])
return {{presence, stream, lives and 1 or 0}}
