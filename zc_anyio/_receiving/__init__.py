"""How a stream receives: with the event loop, through the ring, and awake during brief waits.

This room moves bytes from a socket to a call; it uses no stream.
"""
