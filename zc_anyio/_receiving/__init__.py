"""How a stream receives: with the event loop, through the ring, and awake for a brief wait.

It moves bytes from a socket to a call, and knows no stream.
"""
