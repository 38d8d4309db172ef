-- Records how jobs ended. Keys: the records, then their notes of starts. Arguments: result, keep (ms) per job.
-- Answer, per job: nothing if this record stands, the one that stands otherwise.
-- The records come first: a server at its memory limit refuses a script at its first write, if that takes memory, and
-- lets everything after it pass.
local answer, jobs = {}, #KEYS / 2
for i = 1, jobs do
  local won = redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'NX', 'PX', ARGV[2 * i])
  answer[i] = not won and redis.call('GET', KEYS[i])
end
for from = jobs + 1, #KEYS, 1000 do
  redis.call('DEL', unpack(KEYS, from, math.min(from + 999, #KEYS)))
end
return answer
