"""A chat server over WebSocket, with a page and a terminal client.

* ``python -m examples.chat`` serves it (``__main__``), ``python -m examples.chat.client`` talks to
  it;
* ``app``: the Starlette application; ``messages``: the format of messages;
* ``chat``: connections; ``pictures``: what is posted and fetched over HTTP;
* ``members``, ``rooms``: who is where, and what members get;
* ``queues``: how one buffer goes to all members, and how slow members are recognised;
* ``log``, ``redis_log``: the order of messages, within this process or among several;
* ``limits``, ``flood``: what members may do.

**Order.**  Everything that members get passes the lock of their room, so all members of a room on
one server see the same messages in the same order.  Several servers share the order of the room's
Redis stream; only while Redis is away does each of them have its own.

**Acknowledged** messages are in the log: in memory, or in the stream.  While Redis is away no
message is acknowledged: it is delivered on this server, and waits in a bounded backlog as
*pending*.

**Slow** members are those for which more bytes wait than a limit, or any for longer than a limit;
bytes wait until the peer has acknowledged them.  A slow member gets no more messages.  It gets a
close frame (1013) after those already queued, and some seconds to take them; then it is reset,
which frees what is kept for it.

**Pictures** are posted and fetched over HTTP.  Members are only told of them, so a large one does
not make anybody slow.  The page that posts one makes a preview of it, which comes first in what it
posts; other pages show that, and fetch the picture itself when it is looked at.
"""
