"""A file server over HTTP/3 and its client, whose datagrams leave and arrive in trains.

``python -m examples.quic FOLDER`` serves a folder.  aioquic has the protocols, QUIC and HTTP/3, and
does no input or output: ``endpoint.py`` receives for it by ``receive_segments``, sends by
``send_many`` and keeps its timers.  ``server.py`` finds the connection that a datagram belongs to
and decides which new ones it takes; ``files.py`` answers requests; ``client.py`` asks.
"""
