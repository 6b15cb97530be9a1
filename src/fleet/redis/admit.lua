-- Lets a stream in, unless another incarnation of its runner lives.
-- KEYS runners, sessions, streams, heard, nodes_heard
-- ARGV runner, session, stream, presence, heard_ago_ms, resumes, silent_ms, node_silent_ms
-- Answers what it found: its kind, the earlier stream, session and presence.
local runner, session, stream = ARGV[1], ARGV[2], ARGV[3]
local kind = 'fresh'
local earlier = redis.call('HGET', KEYS[3], runner) or ''
local session_known = redis.call('HGET', KEYS[2], runner) or ''
local presence_known = redis.call('HGET', KEYS[1], runner) or ''
if earlier ~= '' then
    if ARGV[6] == '1' and session_known == session then
        kind = 'resumed'
    else
        if lives(runner, earlier, KEYS[4], KEYS[5], ARGV[7], ARGV[8]) then
            return {'taken', earlier, session_known, presence_known}
        end
        kind = 'replaced'
    end
end
redis.call('HSET', KEYS[1], runner, ARGV[4])
redis.call('HSET', KEYS[2], runner, session)
redis.call('HSET', KEYS[3], runner, stream)
redis.call('ZADD', KEYS[4], now, runner)
return {kind, earlier, session_known, presence_known}
