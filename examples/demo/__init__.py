"""Sends a real file three ways to a server in a second process, and compares them.

The ways: anyio's own ``stream.send``, a send group over the same kind of stream, and a broadcast to
many connections, some of which read slowly.  Run it with ``python -m examples.demo --help``.
"""
