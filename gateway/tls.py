"""What verifies the servers that the gateway itself calls: backends and collectors."""

import ssl


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """A client's context: the system's authorities, or that of `ca_file` alone. Raises OSError.

    An authority that was named is taken as it is. From Python 3.13 on the default asks of it what RFC 5280 does
    (a key identifier, a key usage), which many a company's own does not have.
    """
    context = ssl.create_default_context(cafile=ca_file)
    if ca_file:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
