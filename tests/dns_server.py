"""A DNS server on a UDP port, whose records and moods a test changes."""

from __future__ import annotations

import asyncio
import socket
from typing import Literal, Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
from dns.rdatatype import RdataType

Mood = Literal["NXDOMAIN", "SERVFAIL", "SILENCE", "EMPTY"]


class DNSServer(asyncio.DatagramProtocol):
    """Answers from what `set` was told; use it with `async with`.

    A name that has no record at all does not exist (NXDOMAIN); one that has records of
    another type gets an empty answer. `questions` has all that was asked, in order, as
    `"broker.test A"`. With `negative_ttl`, answers without records say for how many
    seconds that holds. It listens on a free port of 127.0.0.1, or on the socket it is given.
    """

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._sock = sock
        self.questions: list[str] = []
        self.negative_ttl: int | None = None
        self._records: dict[dns.name.Name, dict[RdataType, dns.rrset.RRset]] = {}
        self._moods: dict[tuple[dns.name.Name, RdataType], Mood] = {}
        self._notifications = asyncio.Queue[None]()

    async def __aenter__(self) -> Self:
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self,
            local_addr=None if self._sock else ("127.0.0.1", 0),
            sock=self._sock,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        self._transport.close()

    @property
    def port(self) -> int:
        port: int = self._transport.get_extra_info("sockname")[1]
        return port

    def set(self, name: str, rdtype: str, *values: str, ttl: int = 60) -> None:
        """The records of one name and type from now on (none: that type has no records)."""
        owner, kind = dns.name.from_text(name), dns.rdatatype.from_text(rdtype)
        self._moods.pop((owner, kind), None)
        of_name = self._records.setdefault(owner, {})
        of_name.pop(kind, None)
        if values:
            of_name[kind] = dns.rrset.from_text(owner, ttl, "IN", kind, *values)

    def fail(self, name: str, rdtype: str, mood: Mood) -> None:
        """Answer this question so, whatever the records say, until it is `set` or healed."""
        self._moods[dns.name.from_text(name), dns.rdatatype.from_text(rdtype)] = mood

    def heal(self) -> None:
        """Answer every question from the records again."""
        self._moods.clear()

    async def asked(self, question: str) -> None:
        """Wait until `question` has been asked."""
        while question not in self.questions:
            await self._notifications.get()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        asked = f"{question.name.to_text(omit_final_dot=True)} {question.rdtype.name}"
        self.questions.append(asked)
        self._notifications.put_nowait(None)
        response = self._answer(query, question.name, question.rdtype)
        if response is not None:
            self._transport.sendto(response.to_wire(), addr)

    def _answer(
        self, query: dns.message.Message, name: dns.name.Name, rdtype: RdataType
    ) -> dns.message.Message | None:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        mood = self._moods.get((name, rdtype))
        if mood == "SILENCE":
            return None
        if mood == "SERVFAIL":
            response.set_rcode(dns.rcode.SERVFAIL)
            return response
        if mood is None:
            while alias := self._records.get(name, {}).get(RdataType.CNAME):
                response.answer.append(alias)
                name = alias[0].target
            if rrset := self._records.get(name, {}).get(rdtype):
                response.answer.append(rrset)
                return response
        if mood == "NXDOMAIN" or (mood is None and not self._records.get(name)):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if self.negative_ttl is not None:
            soa = f"ns.test. admin.test. 1 60 60 60 {self.negative_ttl}"
            response.authority.append(
                dns.rrset.from_text(name.parent(), self.negative_ttl, "IN", "SOA", soa)
            )
        return response
