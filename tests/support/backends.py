"""The event loops that every contract is tested on."""

from __future__ import annotations

import pytest

ASYNCIO = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]
TRIO = [pytest.param(("trio", {}), id="trio")]
BACKENDS = ASYNCIO + TRIO

only_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO, indirect=True)
# For tests that take long and do not depend on the event loop.
one_backend = pytest.mark.parametrize("anyio_backend", ASYNCIO[:1], indirect=True)
