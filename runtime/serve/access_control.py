"""Control access to the page's server: tokens, host names and origins.

Any web page that is open in a browser on this machine can connect to this server. Two checks keep
other pages out: the ``Host`` of a request must be a name of this server, which excludes foreign
names that were made to resolve to it (DNS rebinding); and the ``Origin`` of a browser's WebSocket
must be this server's own page.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from ..errors import RequestError

# Characters that need no quoting in a URL's fragment and in a WebSocket subprotocol.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{12,128}")


def new_token() -> str:
    """Make a token that cannot be guessed, 144 bits."""
    return secrets.token_urlsafe(18)


def validate_token(token: str) -> str:
    """Return a user's token if it is usable.

    Raises:
        RequestError: too short, too long, or with other characters than a URL takes.
    """
    if not _TOKEN.fullmatch(token):
        raise RequestError(
            "a token must have 12 to 128 letters, digits, - or _; leave it out, and one is made"
        )
    return token


def token_matches(received: str, token: str | None) -> bool:
    """Compare a received token in constant time; if none is set, everything matches."""
    return token is None or hmac.compare_digest(received.encode(), token.encode())


def is_loopback(address: str) -> bool:
    """Tell whether an IP address can be reached from this machine alone."""
    return ipaddress.ip_address(_without_scope(address)).is_loopback


def local_host_names() -> frozenset[str]:
    """List this machine's names in the local network."""
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return frozenset({name, short, f"{short}.local"})


def is_allowed_host(header: str | None, names: Collection[str], loopback: bool) -> bool:
    """Tell whether a request's ``Host`` names this server; any port, as ports are forwarded.

    Args:
        header: as sent.
        names: allowed beside ``localhost``, in lower case.
        loopback: whether only loopback addresses are allowed; else any address is: rebinding
            needs a name.
    """
    name = _name_of(header)
    if name is None:
        return False
    if name == "localhost" or name in names:
        return True
    try:
        address = ipaddress.ip_address(_without_scope(name))
    except ValueError:
        return False
    return address.is_loopback or not loopback


def is_same_origin(origin: str | None, host: str | None) -> bool:
    """Tell whether a WebSocket comes from this server's page; programs send no ``Origin``."""
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == (host or "").lower()


def _name_of(header: str | None) -> str | None:
    """Extract the host of ``host[:port]`` or ``[v6]:port``; None where there is none."""
    try:
        parts = urlsplit(f"//{header or ''}")
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    if parts.netloc != header or parts.username is not None:
        return None
    return parts.hostname


def _without_scope(address: str) -> str:
    return address.partition("%")[0]
