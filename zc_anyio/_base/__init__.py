"""What every other room may use: exceptions, reports, event loops, the halves of a stream.

It imports from no other room, and uses neither the extension nor a ring.
"""
