"""GLM at Z.ai, over its endpoint in Anthropic's format: https://docs.z.ai. Its errors are numbers in that format."""

from collections.abc import Mapping
from typing import ClassVar

from tests.providers.anthropic import Anthropic
from tests.providers.server import Answer, Got, Refused, as_json


class ZAI(Anthropic):
    """The fake. It takes the key as `x-api-key` or as a bearer, and names its errors by its own codes."""

    name: ClassVar[str] = "zai"
    key: ClassVar[str] = "zai-fake"
    model: ClassVar[str] = "glm-4.5"
    prefix: ClassVar[str] = "/api/anthropic"

    def authorise(self, got: Got) -> None:
        given = got.headers.get("x-api-key") or got.headers.get("authorization", "").removeprefix("Bearer ")
        if not given:
            raise Refused(self._coded(401, "1001", "Authentication parameter not received in Header"))
        if given != self.key:
            raise Refused(self._coded(401, "1000", "Authentication Failed"))

    def error(self, kind: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
        if kind == "invalid_request_error":
            return self._coded(400, "1210", f"Invalid API parameter: {message}")
        if kind == "not_found_error":
            return self._coded(400, "1211", "Unknown Model, please check the model code.")
        return super().error(kind, message, headers)

    def _coded(self, status: int, code: str, message: str) -> Answer:
        body = {"type": "error", "error": {"type": code, "message": message}, "request_id": "20260101000000fake"}
        return as_json(body, status)

    def fail(self, mood: str) -> Answer:
        if mood == "rate_limited":
            text = "High concurrency usage of this API, please reduce concurrency or contact customer service to increase limits"
            return self._coded(429, "1302", text)
        if mood == "overloaded":
            return self._coded(429, "1305", "The service may be temporarily overloaded, please try again later")
        if mood == "out_of_money":
            return self._coded(429, "1113", "Insufficient balance or no resource package. Please recharge.")
        return self._coded(500, "1234", "Network error, please contact customer service")
