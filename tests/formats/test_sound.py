"""How long a sound plays is read from a WAV's header, and bounded by the usual rates for anything else."""

import pytest

from gateway.formats.sound import length_ms
from tests.conformance.media_upstream import wav


def test_a_wav_says_how_long_it_is() -> None:
    """To the millisecond, and in whole seconds as it is billed."""
    assert length_ms(wav(2.5)) == (2500, 3000)
    assert length_ms(wav(0)) == (0, 0)


@pytest.mark.parametrize(
    "head",
    [
        b"ID3",
        b"OggS",
        b"",
        wav(1)[:28] + (2**31).to_bytes(4, "little") + wav(1)[32:],
        wav(1)[:20] + b"\2\0" + wav(1)[22:],
    ],
)
def test_anything_else_plays_as_long_as_its_size_allows(head: bytes) -> None:
    """A WAV that contradicts itself, or is packed, too."""
    data = head.ljust(80_000, b"\0")
    assert length_ms(data) == (10_000, 80_000)
