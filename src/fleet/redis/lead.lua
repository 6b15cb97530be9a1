-- Leads, or goes on leading, where no other node does. Answers 1 where this node leads.
-- KEYS leader
-- ARGV node, ttl_ms
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
