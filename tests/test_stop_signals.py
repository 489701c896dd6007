"""What a signal that ends a process means, by when it comes."""

from __future__ import annotations

from whip_core.stop_signals import ONE_WISH, StopSignals


def test_signals_in_quick_succession_are_one_and_a_later_one_hurries() -> None:
    now = 100.0
    called: list[str] = []
    stop = StopSignals(
        lambda: called.append("slowly"), lambda: called.append("at once"), clock=lambda: now
    )
    stop.told()
    stop.told()
    now += ONE_WISH * 0.9
    stop.told()
    assert called == ["slowly"]
    now += ONE_WISH * 0.2
    stop.told()
    assert called == ["slowly", "at once"]
