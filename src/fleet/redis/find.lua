-- One runner, in a list that is empty where it is not known: its presence, its stream, and 1 where it lives.
-- KEYS runners, sessions, streams, heard, nodes_heard
-- ARGV silent_ms, node_silent_ms, runner
local runner = ARGV[3]
local presence = redis.call('HGET', KEYS[1], runner)
local stream = redis.call('HGET', KEYS[3], runner)
if not presence or not stream then
    return {}
end
return {{presence, stream, lives(runner, stream, KEYS[4], KEYS[5], ARGV[1], ARGV[2]) and 1 or 0}}
