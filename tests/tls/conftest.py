"""Where OpenSSL runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tls.sessions import check_kernel, openssl_at


@pytest.fixture(autouse=True)
def kernel_tls_if_required() -> None:
    check_kernel()


@pytest.fixture(params=["memory", "socket"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    with openssl_at(request.param):
        yield request.param
