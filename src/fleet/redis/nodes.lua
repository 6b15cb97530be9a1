-- The reports of the nodes that are there. Forgets the others.
-- KEYS nodes, nodes_heard
-- ARGV node_silent_ms
local silent = now - tonumber(ARGV[1])
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. silent)) do
    redis.call('HDEL', KEYS[1], node)
    redis.call('ZREM', KEYS[2], node)
end
return redis.call('HVALS', KEYS[1])
