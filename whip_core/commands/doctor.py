"""`whip doctor`: what is wrong, in plain words. Here for brokers; agents have their own part."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import click
from cryptography.hazmat.primitives.serialization import Encoding

from whip_core import tls
from whip_core.broker_options import (
    BROKER_OPTIONS,
    METRICS_LISTEN,
    REMOTE,
    chosen,
    declare,
)
from whip_core.broker_values import (
    flags_of,
    read_broker,
    read_dial_socket,
    read_plugins,
    read_remote,
)
from whip_core.certificates import certificates_in, proves_host
from whip_core.checkup import Checkup, Streams, check_certificates, check_machine, check_port
from whip_core.cli import CommandsByEntryPoint
from whip_core.commands.broker import OPTIONS as ALONE_OPTIONS
from whip_core.dial_address import DialAddress
from whip_core.dial_checkup import check_dial_socket, check_remote
from whip_core.dial_socket import DialAccess, check_address
from whip_core.errors import SettingsError
from whip_core.options import common_options, json_option
from whip_core.pem_files import read_pem_file
from whip_core.settings import BrokerSettings, Role, is_loopback
from whip_core.sockets import answers, bind

PROXY_OPTIONS = (*BROKER_OPTIONS, REMOTE)
ANY = ("0.0.0.0", "::")  # noqa: S104  # it is only compared with


class Doctors(CommandsByEntryPoint):
    """Its commands are the entry points of `whip.doctor`."""

    entry_point_group = "whip.doctor"


@click.group(cls=Doctors)
def doctor() -> None:
    """Say in plain words what is wrong: put it in front of a command's name and options.

    The exit status is 1 if there is a problem.
    """


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@common_options(metrics_listen=METRICS_LISTEN)
@declare(PROXY_OPTIONS)
@json_option
def proxy(as_json: bool, log_level: str, **values: Any) -> None:
    """What keeps whip proxy, or whip forward, with these options from working.

    As a broker, or as one that dials through another's dial socket (--broker).
    """
    checkup = Checkup()
    check_machine(checkup)
    options = chosen(PROXY_OPTIONS, values, metrics_given=False)
    spell = flags_of(PROXY_OPTIONS)
    try:
        remote = read_remote(options, spell)
        if remote is not None:
            work = check_remote(checkup, remote)
        else:
            read_plugins(options).load()
            work = _check(checkup, read_broker(options, spell))
    except SettingsError as error:
        checkup.problem("options", str(error))
    else:
        asyncio.run(work)
    checkup.show(as_json=as_json)


@click.command()
@common_options(metrics_listen=METRICS_LISTEN)
@declare(ALONE_OPTIONS)
@json_option
def broker(as_json: bool, log_level: str, **values: Any) -> None:
    """What keeps whip broker with these options from working."""
    checkup = Checkup()
    check_machine(checkup)
    options = chosen(ALONE_OPTIONS, values, metrics_given=False)
    spell = flags_of(ALONE_OPTIONS)
    try:
        read_plugins(options).load()
        settings = read_dial_socket(options, read_broker(options, spell), spell)
        if not settings.dial_listen:
            raise SettingsError("give --dial-listen: where others dial through this broker")
        access = DialAccess(settings.dial_allow, settings.dial_trust)
        for address in settings.dial_listen:
            check_address(address, access, has_tls=settings.tls is not None)
    except SettingsError as error:
        checkup.problem("options", str(error))
    else:
        asyncio.run(_check(checkup, settings))
    checkup.show(as_json=as_json)


async def _check(checkup: Checkup, settings: BrokerSettings) -> None:
    files = settings.tls
    usable = files is None or check_certificates(checkup, files, Role.BROKER)
    if files is not None and usable:
        _check_name(checkup, settings)
    await _check_dns(checkup, settings)
    for check, port, option in (
        ("control port", settings.grpc_listen_port, "--whip-grpc-listen-port"),
        ("reverse port", settings.tcp_listen_port, "--whip-tcp-listen-port"),
    ):
        if _is_free(checkup, check, settings, port) or not usable:
            continue
        if check == "reverse port":
            host, port = settings.external_host, settings.external_port or port
        else:
            host = settings.external_host
        await _check_running(checkup, settings, check, host, port, option)
    for address in settings.dial_listen:
        if not usable and address.path is None:
            continue
        await _check_dial_listen(checkup, settings, address)


async def _check_dial_listen(
    checkup: Checkup, settings: BrokerSettings, address: DialAddress
) -> None:
    if address.path is not None:
        if answers(address.path):
            await check_dial_socket(checkup, address, None, "this user, whose word is taken")
        else:
            checkup.ok("dial socket", f"{address} is free: no broker has it now")
        return
    try:
        for sock in bind([address.host], address.port, ""):
            sock.close()
    except SettingsError:
        host = settings.external_host if address.host in ANY else address.host
        await _check_running(checkup, settings, "dial socket", host, address.port, "--dial-listen")
    else:
        checkup.ok("dial socket", f"{address} is free: no broker has it now")


def _check_name(checkup: Checkup, settings: BrokerSettings) -> None:
    assert settings.tls is not None
    host, cert = settings.external_host, settings.tls.cert
    chain = certificates_in(read_pem_file(cert, str(cert)), str(cert))
    der = chain[0].public_bytes(Encoding.DER)
    if proves_host(der, host):
        checkup.ok("certificate's name", f"{cert} proves {host}, where agents connect back to")
    else:
        checkup.warning(
            "certificate's name",
            f"{cert} is not for {host}, where agents connect back to",
            "right only if it proves the name in the agents' ENDPOINT",
        )


async def _check_dns(checkup: Checkup, settings: BrokerSettings) -> None:
    host = settings.external_host
    loop = asyncio.get_running_loop()
    checkup.doing(f"looking for {host}")
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        checkup.problem(
            "name", f"{host} is not found here: {error}", "correct --whip-external-tcp-address"
        )
        return
    addresses = sorted({str(entry[4][0]) for entry in found})
    text = f"{host} is {', '.join(addresses)}"
    if all(is_loopback(address) for address in addresses):
        checkup.warning(
            "name",
            f"{text}: agents on other machines cannot connect back there",
            "give --whip-external-tcp-address the name by which they reach this machine",
        )
    else:
        checkup.ok("name", text)


def _is_free(checkup: Checkup, check: str, settings: BrokerSettings, port: int) -> bool:
    try:
        for sock in bind(settings.listen_hosts, port, ""):
            sock.close()
    except SettingsError:
        return False
    checkup.ok(check, f"{port} is free: no broker runs with these options now")
    return True


async def _check_running(
    checkup: Checkup, settings: BrokerSettings, check: str, host: str, port: int, option: str
) -> None:
    """Something has the port: a broker?"""
    files = settings.tls
    context = tls.client_context(files) if files is not None else None
    if context is not None and check == "control port":
        context.set_alpn_protocols(["h2"])

    async def connect() -> Streams:
        return await asyncio.open_connection(
            host, port, ssl=context, server_hostname="" if context else None
        )

    remedy = f"see what listens there, or choose another {option}"
    names = (host,) if files is not None else ()
    where = f"{host} port {port}"
    await check_port(checkup, check, where, connect, names, remedy, is_client=False)
