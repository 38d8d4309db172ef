-- Records how jobs ended. Keys: a record and its notes of starts per job. Arguments: result, keep (ms) per job.
-- Answer, per job: nothing if this record stands, the one that stands otherwise.
local answer = {}
for i = 1, #KEYS, 2 do
  redis.call('DEL', KEYS[i + 1])
  local won = redis.call('SET', KEYS[i], ARGV[i], 'NX', 'PX', ARGV[i + 1])
  answer[#answer + 1] = not won and redis.call('GET', KEYS[i])
end
return answer
