"""Bytes, durations and ranges of numbers as text."""

DAYS_FROM = 72 * 3600  # seconds


def size_text(count: float) -> str:
    """Bytes in a fitting binary unit: 812 bytes, 3.4 MiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds in fitting units: 8.3 s, 2 min 05 s, 3 h 20 min, 4.5 days."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds >= DAYS_FROM:
        return f"{seconds / 86400:,.1f} days"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def numbers_to(last: int) -> str:
    """The whole numbers that can be given, in words: "numbers from 1 to 3", or "1" alone."""
    return f"numbers from 1 to {last}" if last > 1 else "1"
