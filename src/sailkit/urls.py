"""URLs of search results as they may be shared: without passwords, and only of public hosts."""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from contextlib import suppress
from urllib.parse import unquote, urlsplit

from sailkit.errors import UserError

# RFC 6761 and 6762, what routers and clouds give to their own machines, and ICANN's name for private use.
_LOCAL_NAMES = re.compile(r"(.*\.)?(localhost|localdomain|local|internal|home\.arpa)")
_OLD_NUMBERS = re.compile(r"[0-9a-fx.]+")  # 127.1, 0x7f.1, 2130706433: programs take them for addresses too


def server_url(url: str, name: str, like: str, secrets: str = "") -> str:
    """The base URL of a server to which requests are sent, without a final slash.

    Args:
        url: The URL.
        name: What errors call it.
        like: What it should look like.
        secrets: Where a password or key goes instead, as the end of an error.

    Raises:
        UserError: It cannot be read, or holds a password, a query or a fragment: it is written to files.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise UserError(f"{name} cannot be read; it should be like {like}")
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError(f"{name} takes no user:password@, ?query or #fragment, for it is written to files{secrets}")
    return url.rstrip("/")


def public_address(address: str) -> str:
    """A URL as it may be kept and shared.

    Args:
        address: From an engine, a corpus or a file; anything but a web address (a path, a DOI) is returned unchanged.

    Returns:
        The address without user and password; empty where its host is loopback, link-local, private or otherwise not
        on the public internet, or where it cannot be read.
    """
    address = address.strip()
    if not address.isprintable():
        return ""
    try:
        # As browsers read it.
        parts = urlsplit(address.replace("\\", "/"))
        host = parts.hostname
    except ValueError:
        return ""
    if host is None:
        return "" if parts.scheme in ("http", "https") else address
    if _is_local(host):
        return ""
    if "@" not in parts.netloc:
        return address
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _is_local(host: str) -> bool:
    name = unicodedata.normalize("NFKC", unquote(host)).lower().replace("\u3002", ".").rstrip(".")
    if _LOCAL_NAMES.fullmatch(name):
        return True
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None = None
    with suppress(ValueError):
        ip = ipaddress.ip_address(name)
    if ip is None and _OLD_NUMBERS.fullmatch(name):
        with suppress(OSError):
            ip = ipaddress.IPv4Address(socket.inet_aton(name))
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    return ip is not None and not ip.is_global
