"""A stream server: video on demand from a folder, and a live picture for many viewers.

``python -m examples.stream FOLDER`` serves both, with a page; it is a Starlette application
(``app.py``) on ``zc_anyio.asgi``.  Files go out from the page cache, by ``FileResponse``
(``files.py``); ``folder.py`` decides which files may be seen, ``ranges.py`` which part of one is
asked for.  The live picture is broadcast, one buffer for all (``live.py``).
"""
