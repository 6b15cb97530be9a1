-- Sends letters to a node. Answers 0 where it is not there.
-- KEYS nodes_heard
-- ARGV node_silent_ms, node, message channel, letters
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local heard = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[2]) or 0)
if now - heard > tonumber(ARGV[1]) then
    return 0
end
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
