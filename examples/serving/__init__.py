"""What the servers in ``examples`` have in common: how they are started, and what they report.

* ``command``: the options of the command line, and how a Starlette application is served until a
  signal comes;
* ``metrics``: ``/metrics``, with the counters of the ring;
* ``headers``: what keeps browsers from doing more with an answer than was meant;
* ``kernel``: what the kernel knows about a slow peer.
"""

from .command import BACKENDS, add_options, positive, run, serve, stop_on_signal, whole
from .headers import Headers
from .kernel import acknowledged, kernel_memory, position
from .metrics import Metrics

__all__ = [
    "BACKENDS",
    "Headers",
    "Metrics",
    "acknowledged",
    "add_options",
    "kernel_memory",
    "position",
    "positive",
    "run",
    "serve",
    "stop_on_signal",
    "whole",
]
