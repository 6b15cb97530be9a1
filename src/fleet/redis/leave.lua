-- A node is no longer there, and leads no longer.
-- KEYS nodes, nodes_heard, leader
-- ARGV node
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('GET', KEYS[3]) == ARGV[1] then
    redis.call('DEL', KEYS[3])
end
return 1
