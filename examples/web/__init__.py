"""What the servers in ``examples`` have in common: HTTP/1.1 (h11) over a send group.

A server is a handler, ``async def handler(request, exchange)``, and a main function::

    async def main(options: argparse.Namespace) -> None:
        metrics = Metrics()
        async with open_ring(options) as ring, await listen(options) as listener:
            metrics.tell_serving(backend=options.backend, ring=ring)
            routes = Routes(
                {"/": Asset(PAGE, "page.html"), "/metrics": metrics.handle, "/hello": hello}
            )
            server = Server(routes, ring=ring, metrics=metrics)
            async with stop_on_signal() as stop:
                print("serving", address(options, listener), flush=True)
                await server.serve(listener, stop)


    parser = argparse.ArgumentParser(...)
    add_options(parser, port=8000)  # --host --port --backend --driver --plain --connections
    run(main, parser.parse_args())

* ``exchange``: :class:`Request` has ``method``, ``path``, ``query``, ``header(name)`` and
  ``allow("GET", ...)``.  :class:`Exchange` has ``respond(status, body)``, or ``start``, ``send``
  and ``finish``; ``body(most)`` receives.  ``take_over()`` hands over the stream and the bytes that
  follow the request, for another protocol, without an answer (``request.event`` is h11's request).
  ``start_endless`` and ``wait_closed()`` are for answers without an end.  :exc:`HTTPError` answers
  with a status.
* ``server``: :class:`Server`; ``connection``: its :class:`Limits`, each with a status of its own.
  ``server.stopping`` (also ``exchange.stopping``) is set by a graceful stop; handlers then have
  ``limits.stop_seconds`` to end, and are cancelled after that.
* ``routes``: :class:`Routes` by path; :class:`Asset` and ``assets(folder)``, files of a page.
* ``metrics``: :class:`Metrics`: an application adds its own to ``metrics.registry``, which has the
  ring's counters (``zc_held``, ``zc_zero_copied_total``...).
* ``outgoing``: how bytes leave.  ``ring`` is ``None`` with ``--plain``: then anyio's own streams
  send everything.  ``acknowledged(stream)`` and ``kernel_memory(stream)`` say what the kernel knows
  about a slow peer; ``abort(stream)`` resets its connection.

A handler may send to ``exchange.stream`` through send groups of its own: bytes of one socket leave
in the order of the calls.  A connection that was taken over is closed when its handler returns; an
exception of the handler resets it.
"""

from .connection import Limits
from .exchange import Exchange, Handler, HTTPError, Request
from .metrics import Metrics
from .options import add_options, address, listen, open_ring, run, stop_on_signal
from .outgoing import Part, abort, acknowledged, acknowledged_on, kernel_memory
from .routes import Asset, Routes, assets
from .server import Server

__all__ = [
    "Asset",
    "Exchange",
    "HTTPError",
    "Handler",
    "Limits",
    "Metrics",
    "Part",
    "Request",
    "Routes",
    "Server",
    "abort",
    "acknowledged",
    "acknowledged_on",
    "add_options",
    "address",
    "assets",
    "kernel_memory",
    "listen",
    "open_ring",
    "run",
    "stop_on_signal",
]
