"""An ASGI server that sends through a ring, for applications of Starlette, FastAPI, Django...

``python -m zc_anyio.asgi module:app`` runs it; :func:`serve` serves within a program's own event
loop.  Needs the extra ``asgi``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import httptools as _httptools  # noqa: F401
    import wsproto as _wsproto  # noqa: F401
except ImportError as _missing:
    raise ImportError("zc_anyio.asgi needs an extra: pip install 'zc_anyio[asgi]'") from _missing

from ._lifespan import LifespanError
from ._peer import ClientDisconnectedError, Limits
from ._server import serve
from ._websocket import websocket_frame

if TYPE_CHECKING:
    from ._files import FileResponse

__all__ = [
    "ClientDisconnectedError",
    "FileResponse",
    "LifespanError",
    "Limits",
    "serve",
    "websocket_frame",
]


def __getattr__(name: str) -> Any:
    # Only this name needs Starlette.
    if name == "FileResponse":
        from ._files import FileResponse

        return FileResponse
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
