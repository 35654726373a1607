"""The origin of a request: this server's own page, another page, or a program.

A browser adds stored credentials to requests that a foreign page makes. It also names that page, in `Sec-Fetch-Site`
if the connection is trusted (HTTPS, or this machine) and in `Origin` otherwise; pages cannot set either. Programs send
neither, and have no stored credentials to misuse.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

READING = ("GET", "HEAD")
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def is_foreign(method: str, headers: Mapping[str, str], root_path: str = "") -> bool:
    """Tell if a page of another server makes this request.

    Following a link from there is allowed: it only shows the page.

    Args:
        method: of the request.
        headers: of the request, names in lower case.
        root_path: the public path or URL; the host of a URL (https://example.org/app) counts as this server.
    """
    site = headers.get("sec-fetch-site", "")
    if site:
        opens_the_page = method in READING and headers.get("sec-fetch-mode") == "navigate"
        return site not in ("same-origin", "none") and not (
            opens_the_page and headers.get("sec-fetch-dest") == "document"
        )
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        parts = urlsplit(origin)
    except ValueError:
        return True
    scheme, own = parts.scheme, (headers.get("host"), headers.get("x-forwarded-host"), urlsplit(root_path).netloc)
    return not parts.netloc or _bare(parts.netloc, scheme) not in {_bare(host, scheme) for host in own if host}


def _bare(host: str, scheme: str) -> str:
    """A host in lower case, without the port that its scheme implies; of a list of forwarded hosts the first."""
    return host.partition(",")[0].strip().lower().removesuffix(DEFAULT_PORTS.get(scheme, ":"))
