-- Every runner: its presence, its stream, and 1 where it lives. Forgets those that were not heard of for long.
-- KEYS runners, sessions, streams, heard, nodes_heard
-- ARGV silent_ms, node_silent_ms, remember_ms
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, runner in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now - tonumber(ARGV[3]))) do
    redis.call('HDEL', KEYS[1], runner)
    redis.call('HDEL', KEYS[2], runner)
    redis.call('HDEL', KEYS[3], runner)
    redis.call('ZREM', KEYS[4], runner)
end
local there = {}
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], now - tonumber(ARGV[2]), '+inf')) do
    there[node] = true
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
told = redis.call('ZRANGE', KEYS[4], 0, -1, 'WITHSCORES')
for at = 1, #told, 2 do
    local runner, heard = told[at], tonumber(told[at + 1])
    local presence, stream = presences[runner], streams[runner]
    if presence and stream then
        local attached, node = string.match(stream, '^(%d):%d+:(.*)$')
        local lives = attached == '1' and there[node] and now - heard <= tonumber(ARGV[1])
        roster[#roster + 1] = {presence, stream, lives and 1 or 0}
    end
end
return roster
