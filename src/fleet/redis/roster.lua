-- Every runner: its presence, its stream, and 1 where it lives. Forgets those that were not heard of for long.
-- KEYS runners, sessions, streams, heard, nodes_heard
-- ARGV silent_ms, node_silent_ms, remember_ms
for _, runner in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now - tonumber(ARGV[3]))) do
    redis.call('HDEL', KEYS[1], runner)
    redis.call('HDEL', KEYS[2], runner)
    redis.call('HDEL', KEYS[3], runner)
    redis.call('ZREM', KEYS[4], runner)
end
local presences, streams = {}, {}
local told = redis.call('HGETALL', KEYS[1])
for at = 1, #told, 2 do
    presences[told[at]] = told[at + 1]
end
told = redis.call('HGETALL', KEYS[3])
for at = 1, #told, 2 do
    streams[told[at]] = told[at + 1]
end
local roster = {}
for _, runner in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
    local presence, stream = presences[runner], streams[runner]
    if presence and stream then
        roster[#roster + 1] = {presence, stream, lives(runner, stream, KEYS[4], KEYS[5], ARGV[1], ARGV[2]) and 1 or 0}
    end
end
return roster
