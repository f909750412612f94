"""How a program sends: buffers, files, pools, queueing on a context, and send groups.

Everything here sends to streams of anyone; the streams of this library are above it.
"""
