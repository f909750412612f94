"""A stream server: video on demand from a folder, and a live picture for many viewers.

``python -m examples.stream FOLDER`` serves both, with a page.  Files go out by ``send_file``, from
the page cache (``files.py``); ``folder.py`` decides which files may be seen, ``ranges.py`` which
part of one is asked for.  The live picture is broadcast, one buffer for all (``live.py``).  HTTP is
in ``examples/web``.
"""
