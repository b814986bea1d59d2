"""AWS's Signature Version 4 over a POST: the headers that prove who sends it.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from hmac import new as hmac
from urllib.parse import quote

from gateway.upstream.wire import Header

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key; `session_token` comes with a temporary one."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


def sign(
    credentials: Credentials, *, region: str, service: str, authority: str, path: str, body: bytes, now: float
) -> Sequence[Header]:
    """The headers to add to a POST of JSON to `path`, as it stands on the wire; `now` is in seconds since the epoch.

    Signed are the body, `host`, `content-type`, the date and the session token; other headers may be added freely.
    """
    moment = datetime.fromtimestamp(now, UTC)
    stamp, day = moment.strftime("%Y%m%dT%H%M%SZ"), moment.strftime("%Y%m%d")
    told = {"content-type": "application/json", "host": authority, "x-amz-date": stamp}
    if credentials.session_token:
        told["x-amz-security-token"] = credentials.session_token
    names = ";".join(sorted(told))
    lines = "".join(f"{name}:{told[name].strip()}\n" for name in sorted(told))
    # Every service but S3 has the path encoded once more.
    canonical = f"POST\n{quote(path, safe='/-_.~')}\n\n{lines}\n{names}\n{sha256(body).hexdigest()}"
    scope = f"{day}/{region}/{service}/aws4_request"
    text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret_access_key}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac(key, part.encode(), sha256).digest()
    signature = hmac(key, text.encode(), sha256).hexdigest()
    proof = f"{_ALGORITHM} Credential={credentials.access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    found = [(name.encode(), value.encode()) for name, value in told.items() if name != "host"]
    return (*found, (b"authorization", proof.encode()))
