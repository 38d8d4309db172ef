-- Takes or renews a lease. Key: the role. Arguments: holder, lease (ms). Answer: 1 if it is the holder's.
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
