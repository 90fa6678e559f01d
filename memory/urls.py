"""What of an address may be kept, and which addresses are public: those that anyone can fetch, without a name or a
password."""
import ipaddress
import re
from urllib.parse import urlsplit

LOCAL = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "invalid", "test")  # last parts of a name
SERVED = ("http", "https", "ftp")


def shown(url):
    """What a message may say of a URL: no user, no password, no query and no fragment, and of a file on this machine
    only its name. Any of them may be a secret."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "the URL"
    if parts.scheme not in SERVED:
        return f"{parts.scheme}://…/{parts.path.rsplit('/', 1)[-1]}"
    host = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=host + (f":{port}" if port else ""), query="", fragment="").geturl()


def recorded(url):
    """The URL as a record may hold it, as `shown` gives it; or None if that would not fetch the same: with a query,
    whose parts may be a secret and may choose what is served, and for a file on this machine."""
    return None if urlsplit(url).query or urlsplit(url).scheme not in SERVED else shown(url)


def public_address(url):
    """The URL as `recorded` gives it, or None if it is no public one: also if it is on this machine or a network of its
    own. Names are not looked up."""
    try:
        url = recorded(url or "")
        host = urlsplit(url or "").hostname or ""
    except ValueError:
        return None
    try:
        public = ipaddress.ip_address(host).is_global
    except ValueError:  # a name
        public = bool(re.fullmatch(r"([\w-]+\.)+[a-z][\w-]*\.?", host)) and host.rstrip(".").split(".")[-1] not in LOCAL
    return url if public else None
