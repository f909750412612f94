"""anyio's functions to connect and listen, returning streams of this library, and wrapping.

anyio makes the sockets; this room takes them over and wraps them.
"""
