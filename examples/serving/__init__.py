"""What the servers in ``examples`` have in common: how they are started, and what they report.

* ``command``: the options of the command line, and how a Starlette application is served until a
  signal comes;
* ``metrics``: ``/metrics``, with the counters of the ring;
* ``hosts``: which names of the server are answered to;
* ``headers``: what keeps browsers from doing more with an answer than was meant;
* ``kernel``: what the kernel knows about a slow peer.
"""

from .command import BACKENDS, add_options, positive, run, serve, stop_on_signal, whole
from .headers import Headers
from .hosts import Hosts, allowed_hosts
from .kernel import acknowledged, kernel_memory, position
from .metrics import Metrics

__all__ = [
    "BACKENDS",
    "Headers",
    "Hosts",
    "Metrics",
    "acknowledged",
    "add_options",
    "allowed_hosts",
    "kernel_memory",
    "position",
    "positive",
    "run",
    "serve",
    "stop_on_signal",
    "whole",
]
