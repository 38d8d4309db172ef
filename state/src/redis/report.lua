-- A worker reports. Arguments: its name, keep (ms), slots, busy, completed per 1000 s, shape, report, memory (ms).
-- A report that changes numbers only moves the sums; one that changes who serves what has them counted afresh.
local name, keep, shape, memory = ARGV[1], tonumber(ARGV[2]), ARGV[6], tonumber(ARGV[8])
local slots, busy, completed = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = math.floor(now_us() / 1000)
local expires = now + keep

local before = redis.call('HGET', WORKERS, name)
local line = string.format('%.0f %.0f %s %s %s %s', expires, now, ARGV[3], ARGV[4], ARGV[5], shape)
redis.call('HSET', WORKERS, name, line)
redis.call('HSET', REPORTS, name, whole(expires) .. ' ' .. ARGV[7])
for _, key in ipairs({WORKERS, REPORTS}) do
  if redis.call('PTTL', key) < keep then redis.call('PEXPIRE', key, keep) end
end

if not before then
  -- Now and then a newcomer drops those that expired while nobody looked; else whoever needs the sums counts afresh.
  if redis.call('HLEN', WORKERS) % 64 == 0 then recount(now, memory) else redis.call('DEL', SUMS) end
  return
end
local old_expires, old_said, old_slots, old_busy, old_completed, old_shape = parse(before)
if old_shape ~= shape then remember(old_shape, old_said, now, memory) end
local packed = redis.call('GET', SUMS)
local sums = packed and cmsgpack.unpack(packed)
if not sums or sums[1] <= now then
  -- Whoever needs them next counts afresh.
  return
end
if old_shape ~= shape or old_expires <= now then
  redis.call('DEL', SUMS)
  return
end
sums[1] = math.min(sums[1], expires)
local lane, draining = parse_shape(shape)
if not draining then
  local at = 2 + 4 * lane
  sums[at + 1] = sums[at + 1] + slots - old_slots
  sums[at + 2] = sums[at + 2] + busy - old_busy
  sums[at + 3] = sums[at + 3] + completed - old_completed
end
redis.call('SET', SUMS, cmsgpack.pack(sums), 'PX', SUMS_MS)
