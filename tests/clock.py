class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1_780_000_000.0) -> None:  # 2026-05-28
        self.now = now

    def __call__(self) -> float:
        return self.now
