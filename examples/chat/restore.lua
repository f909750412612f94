-- Puts back messages that a log has lost, for instance because Redis was restarted without its data:
-- a server has seen them, and they are missing, at whatever position.  Messages that a full log has dropped
-- are not lost.  Servers that were not told of a message before Redis went are told now.
-- KEYS: the log
-- ARGV: length of the log, seconds to keep, channel, then position and header of each message, oldest
-- first
-- Returns how many were put back.
local most = tonumber(ARGV[1])
if redis.call('XLEN', KEYS[1]) >= most then
  return 0
end
local function place(position)
  local milliseconds, sequence = string.match(position, '(%d+)-(%d+)')
  return { tonumber(milliseconds), tonumber(sequence) }
end
local entries = {}
local present = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
  present[cjson.decode(entry[2][2]).id] = true
  entries[#entries + 1] = { entry[1], entry[2][2], place(entry[1]) }
end
local lost = 0
for i = 4, #ARGV, 2 do
  if not present[cjson.decode(ARGV[i + 1]).id] then
    lost = lost + 1
    redis.call('PUBLISH', ARGV[3], ARGV[i] .. ' ' .. ARGV[i + 1])
    entries[#entries + 1] = { ARGV[i], ARGV[i + 1], place(ARGV[i]) }
  end
end
if lost == 0 then
  return 0
end
table.sort(entries, function(a, b)
  if a[3][1] ~= b[3][1] then return a[3][1] < b[3][1] end
  return a[3][2] < b[3][2]
end)
redis.call('DEL', KEYS[1])
for _, entry in ipairs(entries) do
  redis.call('XADD', KEYS[1], 'MAXLEN', most, entry[1], 'header', entry[2])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return lost
