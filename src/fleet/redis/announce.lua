-- Takes in how a node and its runners are.
-- KEYS runners, sessions, streams, heard, nodes_heard, nodes
-- ARGV node, report or nothing, then of each runner: runner, session, stream, presence, heard_ago_ms
if ARGV[2] ~= '' then
    redis.call('HSET', KEYS[6], ARGV[1], ARGV[2])
    redis.call('ZADD', KEYS[5], now, ARGV[1])
end
for at = 3, #ARGV, 5 do
    local runner, stream = ARGV[at], ARGV[at + 2]
    local known = redis.call('HGET', KEYS[3], runner)
    -- Another stream has taken its place, or it has closed.
    if not known or known == stream then
        redis.call('HSET', KEYS[1], runner, ARGV[at + 3])
        redis.call('HSET', KEYS[2], runner, ARGV[at + 1])
        redis.call('HSET', KEYS[3], runner, stream)
        redis.call('ZADD', KEYS[4], now - tonumber(ARGV[at + 4]), runner)
    end
end
return 1
