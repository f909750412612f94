"""The Python face of the native extension: its functions with exceptions, and a native ring.

Only this room imports the extension.
"""
