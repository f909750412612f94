"""The life of a ring: opening and closing, turns and tasks, contexts, and the sockets it keeps.

A ring knows who sends and what is held; it does not know how a program sends.
"""
