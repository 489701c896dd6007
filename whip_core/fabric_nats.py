"""A fabric over NATS: subjects are keys, and who has subscribed is who is there.

The one module that knows nats-py (`whip-tunnel[nats]`). Questions to a domain go to a queue
group, so that one of the brokers that hold it answers. NATS itself says when nobody listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import ssl
from collections.abc import AsyncGenerator
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from whip_core.fabric import MAX_MESSAGE, Answer, Dropped, FabricError
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

RECONNECT_WAIT = 1
"""Seconds between two attempts at one server: a restart of NATS is soon over."""
FIRST_CONNECT = 5.0
"""Seconds that a start waits for NATS before it goes on without."""
PING_INTERVAL = 10
"""Seconds: a NATS whose path is dead is noticed within three of them."""
QUEUE = "one"
MAX_ANSWERING = 1024
"""Questions answered at once; those beyond are dropped and counted: whoever asked gets no
answer."""


class NatsFabric:
    """A `Fabric` that `DropsQuestions`. `cluster` keeps fabrics on one NATS apart."""

    def __init__(
        self,
        servers: list[str],
        cluster: str,
        *,
        tls: ssl.SSLContext | None = None,
        credentials: str | None = None,
    ) -> None:
        self.tell_dropped: Dropped = lambda reason, why: None
        self._servers = servers
        self._prefix = f"whip.{cluster}."
        self._tls = tls
        self._credentials = credentials
        self._client = Client()
        self._answer: Answer | None = None
        self._wanted: dict[str, bool] = {}
        self._held: dict[str, Subscription] = {}
        self._waiting: dict[str, asyncio.Queue[Msg]] = {}
        self._inbox = f"_INBOX.{secrets.token_hex(12)}"
        self._tasks = TaskSet()
        self._adjusting: asyncio.Task[None] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._trouble = ""
        self._leaving = False

    def __repr__(self) -> str:
        state = "connected" if self._client.is_connected else "not connected"
        return f"<NatsFabric {state} held={len(self._held)}>"

    async def open(self, answer: Answer) -> None:
        self._answer = answer
        self._connecting = self._tasks.spawn(self._connect(), "connect to NATS")
        await asyncio.wait([self._connecting], timeout=FIRST_CONNECT)
        if self._connecting.done():
            self._connecting.result()
        else:
            logger.warning(
                "cannot connect to NATS at %s (will keep trying): %s",
                ", ".join(server.rpartition("@")[2] for server in self._servers),
                self._trouble or "it does not answer",
            )

    async def close(self) -> None:
        await self._tasks.cancel_all()
        self._leaving = True
        with contextlib.suppress(Exception):
            await self._client.close()

    def hold(self, key: str, *, shared: bool) -> None:
        self._wanted[key] = shared
        self._adjust_soon()

    def release(self, key: str) -> None:
        self._wanted.pop(key, None)
        self._adjust_soon()

    async def ask(self, key: str, question: bytes, timeout: float) -> AsyncGenerator[bytes, None]:
        if not self._client.is_connected:
            raise FabricError("NATS cannot be reached")
        if len(question) > MAX_MESSAGE:
            raise FabricError(f"a message of {len(question)} bytes (at most {MAX_MESSAGE})")
        token = secrets.token_hex(8)
        answers: asyncio.Queue[Msg] = asyncio.Queue()
        self._waiting[token] = answers
        try:
            deadline = asyncio.get_running_loop().time() + timeout
            await self._client.publish(self._prefix + key, question, f"{self._inbox}.{token}")
            while True:
                # Never around the yield, where it would cut short whoever reads the answers.
                async with asyncio.timeout_at(deadline):
                    message = await answers.get()
                if _nobody_listens(message):
                    return
                yield message.data
        except TimeoutError:
            return
        except (nats.errors.Error, OSError) as error:
            raise FabricError(f"NATS cannot be asked: {error}") from error
        finally:
            del self._waiting[token]

    # The connection

    async def _connect(self) -> None:
        options: dict[str, Any] = {"user_credentials": self._credentials}
        if self._tls is not None:
            options["tls"] = self._tls
        while True:
            try:
                await self._client.connect(
                    servers=self._servers,
                    name="whip broker",
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_WAIT,
                    ping_interval=PING_INTERVAL,
                    allow_reconnect=True,
                    error_cb=self._failed,
                    disconnected_cb=self._disconnected,
                    reconnected_cb=self._reconnected,
                    closed_cb=self._closed,
                    **{name: value for name, value in options.items() if value is not None},
                )
                await self._client.subscribe(f"{self._inbox}.*", cb=self._answered)
                break
            except (nats.errors.Error, OSError) as error:
                await self._failed(error)
                self._client = Client()
                await asyncio.sleep(RECONNECT_WAIT)
        self._adjust_soon()

    async def _failed(self, error: Exception) -> None:
        """Say what is wrong once, not at each attempt."""
        trouble = str(error) or type(error).__name__
        if trouble != self._trouble:
            logger.warning("NATS: %s", trouble)
        self._trouble = trouble

    async def _closed(self) -> None:
        """NATS has sent an error, such as that our credentials have expired.

        nats-py takes that for final. We do not: what is wrong there is put right there.
        """
        assert self._connecting is not None
        if self._leaving or not self._connecting.done():
            return  # we have closed it, or are trying already
        logger.warning(
            "NATS is lost (will keep trying): %s", self._client.last_error or "it has closed"
        )
        self._held.clear()
        self._client = Client()
        self._connecting = self._tasks.spawn(self._connect_again(), "connect to NATS again")

    async def _connect_again(self) -> None:
        await asyncio.sleep(RECONNECT_WAIT)
        await self._connect()
        await self._reconnected()

    async def _disconnected(self) -> None:
        if not self._client.is_closed:
            logger.warning(
                "NATS is lost (will keep trying): names held by other brokers fail until it is back"
            )

    async def _reconnected(self) -> None:
        logger.info("NATS is back")
        self._trouble = ""
        self._adjust_soon()

    # What we hold

    def _adjust_soon(self) -> None:
        if self._adjusting is None and self._client.is_connected:
            self._adjusting = self._tasks.spawn(self._adjust(), "adjust NATS subscriptions")

    async def _adjust(self) -> None:
        """Subscribe to what is wanted. nats-py renews it all when it connects again."""
        try:
            while self._wanted.keys() != self._held.keys():
                for key in self._held.keys() - self._wanted.keys():
                    await self._held.pop(key).unsubscribe()
                for key in [key for key in self._wanted if key not in self._held]:
                    queue = QUEUE if self._wanted[key] else ""
                    self._held[key] = await self._client.subscribe(
                        self._prefix + key, queue=queue, cb=self._asked
                    )
        except (nats.errors.Error, OSError) as error:
            logger.warning("NATS: cannot subscribe: %s", error)
        finally:
            self._adjusting = None

    async def _asked(self, message: Msg) -> None:
        if len(self._tasks) >= MAX_ANSWERING:
            self.tell_dropped("busy", f"{MAX_ANSWERING} others are being answered")
        elif len(message.data) > MAX_MESSAGE:
            self.tell_dropped("malformed", f"it has {len(message.data)} octets")
        else:
            # In a task of its own: nats-py has one for each subscription, and it waits.
            self._tasks.spawn(self._give_answer(message), "answer a neighbour")

    async def _give_answer(self, message: Msg) -> None:
        assert self._answer is not None
        answer = await self._answer(message.data)
        if answer is not None and message.reply:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._client.publish(message.reply, answer)

    async def _answered(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is not None:
            waiting.put_nowait(message)


def _nobody_listens(message: Msg) -> bool:
    return bool(message.headers) and (message.headers or {}).get("Status") == "503"
