"""anyio's functions that connect, listen and wrap, with streams of this library as results.

It makes sockets by anyio, takes them over, and wraps them.
"""
