-- Counts a batch, claims room, and tells what is known.
-- Keys after the prelude's: 6 the sample and the claims under it, then one window per model.
-- Arguments: slice (µs), window's expiry (ms), memory (ms), claims of the three lanes, stamp of the unused claims,
-- unused places of the three lanes, then (model, jobs) per model.
-- Answer: stamp; workers, slots, granted and left of each lane; then per model jobs in the window, lanes, known.
local SAMPLE = KEYS[6]
local SLICES = 16
local slice, window_ms, memory = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local us = now_us()
local now = math.floor(us / 1000)

local packed = redis.call('GET', SUMS)
local sums = packed and cmsgpack.unpack(packed)
if not sums or sums[1] <= now then sums = recount(now, memory) end

local sample = redis.call('HMGET', SAMPLE, 'stamp', 'interval', 'target',
  'ready0', 'ready1', 'ready2', 'claimed0', 'claimed1', 'claimed2')
local stamp, interval, target_max =
  tonumber(sample[1]) or 0, tonumber(sample[2]) or 0, tonumber(sample[3]) or 0
local answer = {stamp}
for lane = 0, 2 do
  local at = 2 + 4 * lane
  local workers, slots, busy, completed = sums[at], sums[at + 1], sums[at + 2], sums[at + 3]
  local ready, claimed = tonumber(sample[4 + lane]) or 0, tonumber(sample[7 + lane]) or 0
  local back = 0
  if tonumber(ARGV[7]) == stamp then back = math.min(claimed, tonumber(ARGV[8 + lane])) end
  -- The same steps in the same order as the crate's `room`, so that the numbers are the same to the last bit.
  local target = 0
  if slots > 0 then target = math.floor(math.min(completed / 1000 * interval * 2, target_max)) end
  local room = math.max(0, slots + target - busy - ready - (claimed - back))
  local granted = math.min(room, tonumber(ARGV[4 + lane]))
  if granted ~= back then redis.call('HINCRBY', SAMPLE, 'claimed' .. lane, granted - back) end
  answer[#answer + 1] = workers
  answer[#answer + 1] = slots
  answer[#answer + 1] = granted
  answer[#answer + 1] = room - granted
end

-- A window: number of its newest slice, jobs in the slices that are in it as a whole, then jobs by age of the slice,
-- the newest first, the leaving one last. Within a slice only the first three change.
local current = math.floor(us / slice)
local function advance(window)
  local passed = current - window[1]
  if passed <= 0 then return window end
  local moved = {current, 0}
  for age = 0, SLICES do
    moved[age + 3] = age >= passed and window[age - passed + 3] or 0
    if age < SLICES then moved[2] = moved[2] + moved[age + 3] end
  end
  return moved
end
local function count(key, jobs)
  local stored = redis.call('GET', key)
  if not stored and jobs == 0 then return 0 end
  -- A window so old that all its slices have passed is an empty one.
  local window = advance(stored and cmsgpack.unpack(stored) or {-SLICES - 1})
  if jobs > 0 then
    window[2] = window[2] + jobs
    window[3] = window[3] + jobs
    redis.call('SET', key, cmsgpack.pack(window), 'PX', window_ms)
  end
  local passed = math.max(0, us - window[1] * slice) / slice
  return window[2] + window[SLICES + 3] * (1 - passed)
end

local models = {}
for i = 11, #ARGV, 2 do models[#models + 1] = ARGV[i] end
local lanes, named = {}, {}
in_chunks(models, 1000, function(...)
  for _, bits in ipairs(redis.call('HMGET', MODELS, ...)) do lanes[#lanes + 1] = bits end
  for _, said in ipairs(redis.call('ZMSCORE', NAMED, ...)) do named[#named + 1] = said end
end)
for i = 1, #models do
  local bits = tonumber(lanes[i] or 0)
  local said = named[i] and tonumber(named[i])
  local known = bits ~= 0 or (said and said + memory > now)
  answer[#answer + 1] = string.format('%.17g', count(KEYS[6 + i], tonumber(ARGV[10 + 2 * i])))
  answer[#answer + 1] = bits
  answer[#answer + 1] = known and 1 or 0
end
return answer
