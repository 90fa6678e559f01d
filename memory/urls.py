"""Which addresses are public: those that anyone can fetch, without a name or a password."""
import ipaddress
import re
from urllib.parse import urlsplit

LOCAL = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "invalid", "test")  # last parts of a name


def public_address(url):
    """The URL without user and password, or None if it is no public one: no http, https or ftp, or on this machine or a
    network of its own. Names are not looked up."""
    try:
        parts = urlsplit(url or "")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    try:
        public = ipaddress.ip_address(host).is_global
    except ValueError:  # a name
        public = bool(re.fullmatch(r"([\w-]+\.)+[a-z][\w-]*\.?", host)) and host.rstrip(".").split(".")[-1] not in LOCAL
    if parts.scheme not in ("http", "https", "ftp") or not public:
        return None
    host = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=host + (f":{port}" if port else "")).geturl()
