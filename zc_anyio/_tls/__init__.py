"""TLS: streams whose records the kernel makes, or OpenSSL in this process.

:mod:`zc_anyio.tls` chooses between them.
"""
