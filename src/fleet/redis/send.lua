-- Sends letters to a node. Answers 0 where it is not there.
-- KEYS nodes_heard
-- ARGV node_silent_ms, node, message channel, letters
if not is_recent(redis.call('ZSCORE', KEYS[1], ARGV[2]), ARGV[1]) then
    return 0
end
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
