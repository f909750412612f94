-- Puts a message at the end of a room's log and tells all servers, in one step: so they see the order
-- of the log.  A message may be appended again if nobody knew whether the first time had succeeded.
-- It is recognised by its number, since those of one server come in order.
-- KEYS: the log, the latest number of the server, the key for the picture
-- ARGV: number, header, picture or '', length of the log, seconds to keep, channel, and the id if
-- another server may have put the message back into the log, otherwise ''
local number = tonumber(ARGV[1])
if tonumber(redis.call('GET', KEYS[2]) or '0') >= number then
  return false
end
redis.call('SET', KEYS[2], number, 'EX', ARGV[5])
if ARGV[3] ~= '' then
  redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[5])
end
if ARGV[7] ~= '' then
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
    if cjson.decode(entry[2][2]).id == ARGV[7] then
      return false
    end
  end
end
local position = redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[4], '*', 'header', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('PUBLISH', ARGV[6], position .. ' ' .. ARGV[2])
return position
