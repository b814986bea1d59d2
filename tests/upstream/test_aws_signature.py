"""Signatures of requests to AWS."""

from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import quote

from botocore.auth import SigV4Auth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import Credentials as TheirCredentials  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.aws_signature import Credentials, sign

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SEGMENT = st.text(st.sampled_from("abcXYZ019-_.~:%@+ é"), min_size=1, max_size=12).filter(lambda each: each.strip("."))


def theirs(credentials: Credentials, path: str, body: bytes) -> str:
    """What botocore makes of the same request."""
    request = AWSRequest("POST", f"https://host.test{path}", data=body, headers={"content-type": "application/json"})
    theirs = TheirCredentials(credentials.access_key_id, credentials.secret_access_key, credentials.session_token)
    with patch("botocore.auth.get_current_datetime", return_value=NOW, create=True):
        SigV4Auth(theirs, "bedrock", "eu-west-3").add_auth(request)
    return str(request.headers["Authorization"])


@given(
    segments=st.lists(SEGMENT, min_size=1, max_size=3), body=st.binary(max_size=50), session=st.none() | st.just("t")
)
def test_signatures_are_botocore_s(segments: list[str], body: bytes, session: str | None) -> None:
    """For any path, as it stands on the wire, and any body; with a session or without."""
    credentials = Credentials("AKIA", "secret/+=", session)
    path = "/" + "/".join(quote(segment, safe="") for segment in segments) + "/converse"
    found = dict(
        sign(
            credentials,
            region="eu-west-3",
            service="bedrock",
            authority="host.test",
            path=path,
            body=body,
            now=NOW.timestamp(),
        )
    )
    assert found[b"authorization"].decode() == theirs(credentials, path, body)
    assert (b"x-amz-security-token" in found) is (session is not None)
    assert found[b"x-amz-date"] == b"20260102T030405Z"


def test_secrets_are_not_shown() -> None:
    """In no representation."""
    assert "secret" not in repr(Credentials("AKIA", "secret", "secret"))
