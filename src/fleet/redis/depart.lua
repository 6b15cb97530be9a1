-- A stream has closed. Answers 0 where another one has taken its place.
-- KEYS runners, sessions, streams, heard, nodes_heard
-- ARGV runner, session, stream, presence, heard_ago_ms
local runner, stream = ARGV[1], ARGV[3]
local closed = '0' .. string.sub(stream, 2)
local known = redis.call('HGET', KEYS[3], runner)
if known and known ~= stream and known ~= closed then
    return 0
end
redis.call('HSET', KEYS[1], runner, ARGV[4])
redis.call('HSET', KEYS[2], runner, ARGV[2])
redis.call('HSET', KEYS[3], runner, closed)
redis.call('ZADD', KEYS[4], now - tonumber(ARGV[5]), runner)
return 1
