"""A stream server: video on demand from a folder, and a live picture for many viewers.

``python -m examples.stream FOLDER`` serves both, with a page.  Files go out by ``send_file``, page
by page from the page cache (``files.py``; what may be seen is ``folder.py``'s affair, and which
part of it ``ranges.py``'s).  The live picture is broadcast, one buffer for all (``live.py``).  The
HTTP is in ``examples/web``.
"""
