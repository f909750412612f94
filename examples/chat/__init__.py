"""A chat server over WebSocket, with a page and a terminal client.

* ``python -m examples.chat`` serves it (``__main__``), ``python -m examples.chat.client`` talks to
  it;
* ``messages``: the format of messages; ``websocket``: frames, by wsproto;
* ``chat``: connections; ``members``, ``rooms``: who is where, and what they get to see;
* ``queues``: how one buffer goes to all members, and how it is known who is slow;
* ``log``, ``redis_log``: the order of messages, within this process or among several;
* ``limits``, ``flood``: what members may do.
"""
