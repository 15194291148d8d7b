"""Check server URLs, and make URLs of search results safe to share: no passwords, only public hosts."""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from contextlib import suppress
from urllib.parse import unquote, urlsplit

from sailkit.errors import UserError

# RFC 6761 and 6762, names that routers and clouds give to machines, and ICANN's name for private use.
_LOCAL_NAMES = re.compile(r"(.*\.)?(localhost|localdomain|local|internal|home\.arpa)")
_OLD_NUMBERS = re.compile(r"[0-9a-fx.]+")  # 127.1, 0x7f.1, 2130706433: programs accept them as addresses too


def server_url(url: str, name: str, like: str, secrets: str = "") -> str:
    """Check the base URL of a server, and return it without a final slash.

    Args:
        url: The URL.
        name: Name of the URL, for errors.
        like: An example, for errors.
        secrets: Advice on where to put a password or key, appended to an error.

    Raises:
        UserError: It is malformed, or has a password, query or fragment: the URL is written to files.
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
    """Make a URL safe to store and share.

    Args:
        address: The URL of a search result; anything but a web address (a path, a DOI) is returned unchanged.

    Returns:
        The address without user and password; empty if its host is loopback, link-local, private or otherwise not
        on the public internet, or if it is malformed.
    """
    address = address.strip()
    if not address.isprintable():
        return ""
    try:
        # Browsers treat a backslash as a slash.
        parts = urlsplit(address.replace("\\", "/"))
        host = parts.hostname
        urlsplit(address)  # as other programs read it
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
