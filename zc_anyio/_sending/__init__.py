"""How a program sends: buffers, files, pools, queueing on a context, and send groups.

Everything here sends to streams of any origin; this library's own streams are above this room.
"""
