"""What `whip broker` and `whip forward` do from their start to their end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence

from whip_core.broker import Broker
from whip_core.forward import ForwardSpec
from whip_core.operating import Listening, operating
from whip_core.options import hangup_is_ours
from whip_core.remote import RemoteBroker
from whip_core.stop_signals import StopSignals
from whip_core.tasks import TaskSet


async def serve(
    broker: Broker | RemoteBroker,
    listening: Listening,
    forwards: Sequence[ForwardSpec] = (),
    *,
    wait: float = 0.0,
) -> None:
    """Run `broker` until a stop signal; then drain it, until it is done or another signal comes.

    A dial through one of `forwards` waits up to `wait` seconds for its agent. SIGHUP reopens
    logs. Raises `SettingsError` or `OSError` for what cannot be listened on.
    """
    stop, at_once = asyncio.Event(), asyncio.Event()
    StopSignals(stop.set, at_once.set).listen()
    if hangup_is_ours():
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, broker.reopen_logs)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(broker)
        await stack.enter_async_context(operating(broker, listening))
        for spec in forwards:
            await stack.enter_async_context(broker.forwarding(spec, wait=wait))
        await stop.wait()
        tasks = TaskSet()
        drained = tasks.spawn(broker.drain(broker.settings.drain_timeout), "drain")
        hurried = tasks.spawn(at_once.wait(), "second signal")
        await asyncio.wait([drained, hurried], return_when=asyncio.FIRST_COMPLETED)
        await tasks.cancel_all()
