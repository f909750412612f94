"""Where OpenSSL runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest

from tests.tls.sessions import KERNEL_HAS_TLS
from zc_anyio import tls
from zc_anyio._base.kernel_tls import why_no_kernel_tls


@pytest.fixture(autouse=True)
def kernel_tls_if_required() -> None:
    """Fail where the kernel's TLS is required and missing (``ZC_ANYIO_REQUIRE_KERNEL_TLS=1``)."""
    if os.environ.get("ZC_ANYIO_REQUIRE_KERNEL_TLS") == "1":
        assert KERNEL_HAS_TLS, why_no_kernel_tls()


@pytest.fixture(params=["memory", "socket"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where OpenSSL runs; on the socket, it gives the kernel its keys if the kernel has TLS.

    If the kernel has none, it goes on by itself, as with a cipher that the kernel does not know.
    """
    reason = "this test has OpenSSL in memory" if request.param == "memory" else None
    with mock.patch.object(tls, "why_no_kernel_tls", return_value=reason):
        yield request.param
