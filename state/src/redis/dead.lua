-- A page of the index of dead jobs, newest first. Keys: ids by time of death, entries by id. Arguments: first, last.
-- Answer: how many there are, then the entries.
local answer = {redis.call('ZCARD', KEYS[1])}
local ids = redis.call('ZREVRANGE', KEYS[1], ARGV[1], ARGV[2])
for from = 1, #ids, 1000 do
  local entries = redis.call('HMGET', KEYS[2], unpack(ids, from, math.min(from + 999, #ids)))
  for _, entry in ipairs(entries) do
    if entry then answer[#answer + 1] = entry end
  end
end
return answer
