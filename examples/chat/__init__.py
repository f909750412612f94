"""A chat server over WebSocket, with a page and a terminal client.

* ``python -m examples.chat`` serves it (``__main__``), ``python -m examples.chat.client`` talks to
  it;
* ``messages``: the format of messages; ``websocket``: frames, by wsproto;
* ``chat``: connections; ``members``, ``rooms``: who is where, and what they get to see;
* ``queues``: how one buffer goes to all members, and how it is known who is slow;
* ``log``, ``redis_log``: the order of messages, within this process or among several;
* ``limits``, ``flood``: what members may do.

**Order.**  What members get passes the lock of their room, so all members of a room on one server
see the same in the same order.  Several servers see the order of the room's Redis stream; only
while Redis is away does each of them have its own.

**Acknowledged** is what is in the log: in memory, or in the stream.  While Redis is away nothing
is, and what is said waits in a bounded backlog, delivered on this server and *pending*.

**Slow** is a member for which more waits than a limit, or anything for longer than one; what its
peer has not acknowledged waits.  It gets no more messages, but a close frame (1013) behind those
that it has coming, and some seconds to take them; then it is reset, which frees what is kept for
it.
"""
