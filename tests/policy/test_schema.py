"""The shape of policies: what a unit means, what a field allows, what is exact."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.policy.schema import (
    Backend,
    Document,
    Hedge,
    Key,
    Limit,
    Model,
    Price,
    Route,
    Server,
    Step,
    Timeouts,
    parse_duration,
    parse_size,
)

HASH = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("5m", 300), ("12h", 43200), ("7d", 604800), ("1.5s", 1.5), ("0s", 0)],
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    """Five units, fractions allowed."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "30", 30, 1.5, True, None, "s", "-1s", "1 s", "1w", "1e3s", "99999d", [], "9" * 400 + "d"]
)
def test_anything_else_is_no_duration(value: object) -> None:
    """A bare number has no unit, and more than ten years is a slip."""
    with pytest.raises(ValueError, match=r"duration|ten years"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("value", "size"), [("32MiB", 32 * 2**20), ("500KB", 500_000), ("1 GiB", 2**30), (7, 7), ("7", 7), ("7B", 7)]
)
def test_a_size_is_a_number_with_a_unit(value: object, size: int) -> None:
    """Powers of 1000 and of 1024, or plain bytes."""
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "big", True, None, -1, 0, "0KB", 1.5, "1TB", "9" * 5000, "9" * 5000 + "GiB"])
def test_anything_else_is_no_size(value: object) -> None:
    """Nothing, a fraction, zero, and what no machine has."""
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(value)


@given(st.decimals(min_value=0, max_value=10**6, allow_nan=False, allow_infinity=False, places=9))
def test_money_keeps_every_digit(amount: Decimal) -> None:
    """A Decimal, and the text of one, come out as they went in."""
    assert Price(input=amount).input == amount
    assert Price.model_validate({"output": str(amount)}).output == amount


def test_a_float_of_money_is_what_it_prints() -> None:
    """0.1 is a tenth, and not the binary number next to it."""
    assert Price.model_validate({"input": 0.1}).input == Decimal("0.1")


@pytest.mark.parametrize("amount", [-1, "nan", "inf", float("nan"), True, 10**10, "5 dollars"])
def test_money_is_a_finite_amount(amount: object) -> None:
    """Nothing negative, nothing endless, no word."""
    with pytest.raises(ValidationError):
        Price.model_validate({"input": amount})


@pytest.mark.parametrize("per", ["second", "minute", "hour", "day", "week", "month", "total", "12h", "90s"])
def test_every_period_is_a_period(per: str) -> None:
    """The named windows and any duration."""
    limit = Limit.model_validate({"usd": 5, "per": per})
    assert (limit.unit, limit.amount, limit.per) == ("usd", 5, per)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"usd": 5}, "`per` is missing"),
        ({"per": "day"}, "exactly one unit"),
        ({"usd": 5, "tokens": 5, "per": "day"}, "exactly one unit"),
        ({"concurrent": 4, "per": "day"}, "has no period"),
        ({"usd": 5, "per": "0s"}, "is not a period"),
        ({"usd": 5, "per": 60}, "is not a period"),
        ({"usd": 5, "per": "year"}, "is not a period"),
        ({"requests": 2**60, "per": "day"}, "less than or equal"),
        ({"requests": True, "per": "day"}, "not a number"),
        ({"usd": 5, "per": "day", "alert_at": [float("nan")]}, "greater than or equal"),
    ],
)
def test_a_limit_says_one_thing(fields: dict[str, Any], told: str) -> None:
    """One unit, one period, and none for `concurrent`."""
    with pytest.raises(ValidationError, match=told):
        Limit.model_validate(fields)


@pytest.mark.parametrize("url", ["http://h/v1", "https://h:81/v1/", "http://[::1]:8080/v1//"])
def test_a_base_url_loses_its_last_slash(url: str) -> None:
    """So that a path can be put behind it."""
    assert Backend(base_url=url).base_url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        *("", "h/v1", "ftp://h", "http://", "http:///v1", "http://h:99999", "http://h:x", "http://h:0/v1"),
        *("http://u:p@h/v1", "http://h/v1?a=b", "http://h/v1#f", "http://h /v1", "http://h/v1\r\nx: y", "http://[::1"),
    ],
)
def test_anything_else_is_no_base_url(url: str) -> None:
    """No scheme, host or valid port, or more than the wire would use."""
    with pytest.raises(ValidationError, match="not a base URL"):
        Backend(base_url=url)


def test_a_backend_needs_a_base_url_unless_its_provider_knows_one() -> None:
    """OpenAI-compatible servers are anywhere; simulators and litellm's providers are not."""
    with pytest.raises(ValidationError, match="`base_url` is missing"):
        Backend()
    assert Backend(provider="simulator").base_url is None
    assert Backend(provider="anthropic").base_url is None
    with pytest.raises(ValidationError, match="provider: simulator"):
        Backend.model_validate({"base_url": "http://h/v1", "simulator": {}})


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "sk-\r\nx-injected: 1", "schlüssel"])
def test_an_api_key_can_stand_in_a_header(key: str) -> None:
    """Nothing that could end the header or begin another."""
    with pytest.raises(ValidationError, match="not an API key") as raised:
        Backend(base_url="http://h/v1", api_keys=(key,))
    assert not key or key not in str(raised.value)


@pytest.mark.parametrize("text", ["", "sha256:", "0" * 64, "sha256:" + "A" * 64, "sha256:" + "0" * 65, HASH + "\n", 5])
def test_a_hash_is_sha256_in_hex(text: object) -> None:
    """Lower case, 64 digits, and its name before it."""
    with pytest.raises(ValidationError, match="not a key's hash"):
        Key.model_validate({"hash": text})


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-01", date(2027, 1, 1)),
        ("2027-01-01T12:00:00", datetime(2027, 1, 1, 12)),
        ("2027-01-01T12:00:00Z", datetime(2027, 1, 1, 12, tzinfo=UTC)),
        (None, None),
    ],
)
def test_a_key_expires_on_a_date_or_at_a_time(text: str | None, moment: object) -> None:
    """A time without a zone stays so: the server's own zone is meant."""
    expires = Key.model_validate({"hash": HASH, "expires": text}).expires
    assert expires == moment
    assert type(expires) is type(moment)


@pytest.mark.parametrize("value", ["soon", "2027-02-30", 5, True, []])
def test_anything_else_is_no_date(value: object) -> None:
    """A number is not taken for seconds since the epoch."""
    with pytest.raises(ValidationError, match="is not a date"):
        Key.model_validate({"hash": HASH, "expires": value})


def test_short_forms_are_long_forms() -> None:
    """A list is a route, a name is a step, and `free` is a price of nothing."""
    assert Document.model_validate({"aliases": {"a": ["m"]}}).aliases["a"] == Route(chain=(Step(any=("m",)),))
    assert Model.model_validate({"backend": "b", "model": "m", "price": "free"}).price == Price()


def test_weights_name_models_of_their_step() -> None:
    """A weight for a model that is not there is a slip."""
    with pytest.raises(ValidationError, match="names c, not in `any`"):
        Step.model_validate({"any": ["a", "b"], "weights": {"c": 1}})


def test_a_hedge_waits_seconds_or_the_p95() -> None:
    """Both forms, and no other word."""
    assert Hedge.model_validate({"after": "2s"}).after == 2.0
    assert Hedge.model_validate({"after": "p95"}).after == "p95"
    with pytest.raises(ValidationError, match="is not a duration"):
        Hedge.model_validate({"after": "p50"})


def test_unknown_fields_and_zero_timeouts_are_refused() -> None:
    """Nothing is ignored, and no wait is none."""
    with pytest.raises(ValidationError, match="Extra inputs"):
        Server.model_validate({"max_bdy": 1})
    with pytest.raises(ValidationError, match="longer"):
        Timeouts.model_validate({"connect": "0s"})
    with pytest.raises(ValidationError, match="is not a time zone"):
        Server.model_validate({"timezone": "../etc/passwd"})


def test_an_error_never_holds_the_value() -> None:
    """Pydantic's own text leaves the input out, for it may be a secret."""
    with pytest.raises(ValidationError) as raised:
        Backend.model_validate({"base_url": "http://h/v1", "api_keys": "sk-secret", "local": "sk-secret"})
    assert "sk-secret" not in str(raised.value)
