"""How long a sound file plays, as far as its size and its first bytes tell."""

_USUAL = 8000  # bytes a second: 64 kbit/s
_LEAST = 1000  # bytes a second: 8 kbit/s, as little as MP3 can have


def length_ms(data: bytes) -> tuple[int, int]:
    """About how many milliseconds it plays, and how many at most, in whole seconds as they are billed.

    WAV's header says it; of others their usual rates, and files with less than 8 kbit/s play longer than that.
    """
    rate = _wav_rate(data)
    if rate:
        exact = -(-max(0, len(data) - 44) * 1000 // rate)
        return exact, -(-exact // 1000) * 1000
    return -(-len(data) * 1000 // _USUAL), -(-len(data) // _LEAST) * 1000


def _wav_rate(data: bytes) -> int:
    """Bytes a second of plain PCM or float samples; 0 for anything else, or a header that contradicts itself."""
    if data[:4] != b"RIFF" or data[8:16] != b"WAVEfmt " or data[20:22] not in (b"\1\0", b"\3\0"):
        return 0
    frames, told, align = (int.from_bytes(data[a:b], "little") for a, b in ((24, 28), (28, 32), (32, 34)))
    return told if told == frames * align and told >= _LEAST else 0
