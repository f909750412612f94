"""Sends a real file three ways to a server in a second process, and compares them.

The ways are anyio's own ``stream.send``, a send group over the same kind of stream, and a broadcast
to many connections, some of which read slowly.  Over loopback the kernel always copies, so finally
it sends to a device that drops everything, where nothing is copied.
Run it with ``python -m examples.demo --help``.
"""
