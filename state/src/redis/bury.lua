-- Adds dead jobs to the index. Keys: ids by time of death, entries by id. Arguments: most entries, then (id, died,
-- entry) per job. The oldest make room.
local most = tonumber(ARGV[1])
for i = 2, #ARGV, 3 do
  if redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 2]) == 1 then
    redis.call('ZADD', KEYS[1], ARGV[i + 1], ARGV[i])
  end
end
local excess = redis.call('ZCARD', KEYS[1]) - most
if excess > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[1], excess)
  for i = 1, #oldest, 2 do redis.call('HDEL', KEYS[2], oldest[i]) end
end
