-- A worker has left. Arguments: its name, memory (ms).
local line = redis.call('HGET', WORKERS, ARGV[1])
if line then
  local _, said, _, _, _, shape = parse(line)
  remember(shape, said, math.floor(now_us() / 1000), tonumber(ARGV[2]))
  redis.call('HDEL', WORKERS, ARGV[1])
  redis.call('DEL', SUMS)
end
redis.call('HDEL', REPORTS, ARGV[1])
