"""What several tests of the books share."""

from collections.abc import Iterator

import pytest

from tests.budget.valkey import valkey_url


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_url() as url:
        yield url
