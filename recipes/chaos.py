"""One instance misbehaves, in turns: `whip proxy ... -- -s recipes/chaos.py --set chaos=NAME`.

Every `chaos_seconds` it has another fault of the list, and in between none. Each flow that met
one says so in its metadata (`~meta 'whip.fault'`), so a test can tell what was meant to fail.
"""

import asyncio
import itertools

from mitmproxy import ctx
from mitmproxy.exceptions import CommandError

FAULTS = ("delay=2s", "status=503", "throttle=10k", "reset")


class Chaos:
    task = None

    def load(self, loader):
        loader.add_option("chaos", str, "", "The instance that is to misbehave.")
        loader.add_option("chaos_seconds", int, 30, "How long each fault lasts, and each pause.")

    def running(self):
        if ctx.options.chaos and self.task is None:
            self.task = asyncio.get_running_loop().create_task(self.misbehave())

    async def misbehave(self):
        for fault in itertools.cycle(FAULTS):
            seconds = ctx.options.chaos_seconds
            try:
                ctx.master.commands.call_strings(
                    "whip.fault", [ctx.options.chaos, fault, str(seconds)]
                )
                await asyncio.sleep(seconds)
            except CommandError:
                pass  # it is not registered (yet)
            await asyncio.sleep(seconds)

    def done(self):
        if self.task is not None:
            self.task.cancel()


addons = [Chaos()]
