"""What this machine can do: measuring, a report of it, and its display in a terminal.

``python -m zc_anyio`` is its face.
"""
