-- Stores what the lanes' queues hold; all claims are void. Key: the sample. Arguments: interval (s), highest target,
-- ready messages of the three lanes. The stamp follows the clock, so that it is new even after all data was lost.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stamp = math.max((tonumber(redis.call('HGET', KEYS[1], 'stamp')) or 0) + 1, now)
redis.call('HSET', KEYS[1], 'stamp', string.format('%.0f', stamp), 'interval', ARGV[1], 'target', ARGV[2],
  'ready0', ARGV[3], 'ready1', ARGV[4], 'ready2', ARGV[5], 'claimed0', 0, 'claimed1', 0, 'claimed2', 0)
