"""The native extension for Python: its functions, with exceptions, and a native ring.

Only this room imports the extension.
"""
