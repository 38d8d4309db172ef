-- What the scripts about workers share. Keys, in this order in every one of them:
-- 1 workers' lines, 2 their reports, 3 sums per lane, 4 lanes per model, 5 models once named.
local WORKERS, REPORTS, SUMS, MODELS, NAMED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
-- Sums are counted afresh at least this often, in milliseconds, whatever happens.
local SUMS_MS = 3600000
-- The bit of a model that only workers have which take no jobs just now.
local DRAINING = 128

local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Redis turns numbers into text with too few digits.
local function whole(number)
  return string.format('%.0f', number)
end

-- Commands take only so many arguments from Lua's stack.
local function in_chunks(list, size, use)
  for from = 1, #list, size do
    use(unpack(list, from, math.min(from + size - 1, #list)))
  end
end

-- A worker's line: when it expires, when it last reported, slots, busy, completed per 1000 s, and its shape:
-- lane, 'd' (takes no jobs: drains, or has no slot) or '-', and its models with a comma behind each.
local function parse(line)
  local expires, said, slots, busy, completed, shape =
    string.match(line, '^(%d+) (%d+) (%d+) (%d+) (%d+) (.*)$')
  return tonumber(expires), tonumber(said), tonumber(slots), tonumber(busy), tonumber(completed), shape
end

local function parse_shape(shape)
  return tonumber(string.sub(shape, 1, 1)), string.sub(shape, 2, 2) == 'd', string.sub(shape, 3)
end

-- Notes that the models of a shape were last named at `said`.
local function remember(shape, said, now, memory)
  local _, _, models = parse_shape(shape)
  local named = {}
  for model in string.gmatch(models, '[^,]+') do
    named[#named + 1] = whole(said)
    named[#named + 1] = model
  end
  in_chunks(named, 1000, function(...) redis.call('ZADD', NAMED, 'GT', ...) end)
  redis.call('ZREMRANGEBYSCORE', NAMED, '-inf', whole(now - memory))
  redis.call('PEXPIRE', NAMED, memory)
end

-- Counts everything afresh from the workers' lines, drops those that expired, and returns the sums: when the first
-- worker expires, then for each lane workers, slots, busy and completed per 1000 s.
local function recount(now, memory)
  local sums = {now + SUMS_MS, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
  local alive, named, gone = {}, {}, {}
  local lines = redis.call('HGETALL', WORKERS)
  for i = 1, #lines, 2 do
    local expires, said, slots, busy, completed, shape = parse(lines[i + 1])
    if said > (named[shape] or 0) then named[shape] = said end
    if expires <= now then
      gone[#gone + 1] = lines[i]
    else
      alive[shape] = true
      sums[1] = math.min(sums[1], expires)
      local lane, draining = parse_shape(shape)
      if not draining then
        local at = 2 + 4 * lane
        sums[at] = sums[at] + 1
        sums[at + 1] = sums[at + 1] + slots
        sums[at + 2] = sums[at + 2] + busy
        sums[at + 3] = sums[at + 3] + completed
      end
    end
  end
  local bits = {}
  for shape, said in pairs(named) do
    remember(shape, said, now, memory)
    if alive[shape] then
      local lane, draining, models = parse_shape(shape)
      for model in string.gmatch(models, '[^,]+') do
        bits[model] = bit.bor(bits[model] or 0, draining and DRAINING or bit.lshift(1, lane))
      end
    end
  end
  local fields = {}
  for model, lanes in pairs(bits) do
    fields[#fields + 1] = model
    fields[#fields + 1] = lanes
  end
  redis.call('DEL', MODELS)
  if #fields > 0 then
    in_chunks(fields, 1000, function(...) redis.call('HSET', MODELS, ...) end)
    redis.call('PEXPIRE', MODELS, 2 * SUMS_MS)
  end
  in_chunks(gone, 1000, function(...)
    redis.call('HDEL', WORKERS, ...)
    redis.call('HDEL', REPORTS, ...)
  end)
  redis.call('SET', SUMS, cmsgpack.pack(sums), 'PX', SUMS_MS)
  return sums
end
