"""What Amazon's services share: Signature Version 4, checked as they check it, and the frames of an event stream."""

import hashlib
import hmac
import json
import re
import struct
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit
from zlib import crc32

from tests.providers.server import Got

_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<scope>\d{8}/(?P<region>[a-z0-9-]+)/(?P<service>[a-z]+)/aws4_request),"
    r"\s*SignedHeaders=(?P<names>[a-z0-9;-]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
)


def problem_of_signature(got: Got, key: str, secret: str, region: str, service: str) -> str | None:
    """Why the signature does not hold; None when it does.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html: the path is encoded once more than on the wire.
    """
    found = _SIGNED.fullmatch(got.headers.get("authorization", ""))
    if found is None:
        return "Missing Authentication Token"
    if found["key"] != key:
        return "The security token included in the request is invalid."
    if (found["region"], found["service"]) != (region, service):
        return f"Credential should be scoped to a valid region, not '{found['region']}'."
    names = found["names"].split(";")
    moment = got.headers.get("x-amz-date", "")
    if "host" not in names or "x-amz-date" not in names or not moment.startswith(found["scope"][:8]):
        return "'Host' and 'X-Amz-Date' must be signed headers."
    if any(name not in got.headers for name in names):
        return "A signed header is missing."
    parts = urlsplit(got.target)
    query = "&".join(
        f"{quote(a, '~')}={quote(b, '~')}" for a, b in sorted(parse_qsl(parts.query, keep_blank_values=True))
    )
    headers = "".join(f"{name}:{' '.join(got.headers[name].split())}\n" for name in names)
    body = hashlib.sha256(got.body).hexdigest()
    canonical = "\n".join((got.method, quote(parts.path, "/~"), query, headers, found["names"], body))
    told = ("AWS4-HMAC-SHA256", moment, found["scope"], hashlib.sha256(canonical.encode()).hexdigest())
    mac = f"AWS4{secret}".encode()
    for part in found["scope"].split("/"):
        mac = hmac.digest(mac, part.encode(), "sha256")
    if hmac.new(mac, "\n".join(told).encode(), "sha256").hexdigest() != found["signature"]:
        return "The request signature we calculated does not match the signature you provided."
    return None


def frame(payload: Any, headers: Mapping[str, str]) -> bytes:
    """One message of `application/vnd.amazon.eventstream`; a payload that is not bytes goes as JSON."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload, ensure_ascii=False).encode()
    named = b"".join(
        struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", 7, len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(named) + len(body), len(named))
    whole = prelude + struct.pack(">I", crc32(prelude)) + named + body
    return whole + struct.pack(">I", crc32(whole))


def event(kind: str, payload: Any) -> bytes:
    """An event of a stream."""
    return frame(payload, {":event-type": kind, ":content-type": "application/json", ":message-type": "event"})


def exception(kind: str, message: str) -> bytes:
    """An exception inside a stream."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return frame({"message": message}, headers)
