"""What this machine can do: measuring it, reporting it, and showing it in a terminal.

``python -m zc_anyio`` runs it.
"""
