"""The addon's settings: their names, their defaults, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mitmproxy.options import Options
from mitmproxy.tools.cmdline import mitmdump

from whip_addon import options, settings
from whip_core.errors import SettingsError
from whip_core.settings import TLSFiles

DEFAULTS = {option.name: option.default for option in settings.OPTIONS}
PLAIN: dict[str, Any] = {
    **DEFAULTS,
    "whip_external_tcp_address": "proxy.example",
    "whip_tls": False,
}


def read(**changes: Any) -> settings.AddonSettings:
    return settings.read(PLAIN | changes)


@pytest.mark.parametrize(
    ("flag", "name", "default"),
    [
        ("--whip-external-tcp-address", "whip_external_tcp_address", None),
        ("--whip-external-tcp-port", "whip_external_tcp_port", None),
        ("--whip-listen-host", "whip_listen_host", None),
        ("--whip-tcp-listen-port", "whip_tcp_listen_port", 8000),
        ("--whip-grpc-listen-port", "whip_grpc_listen_port", 50051),
        ("--tls", "whip_tls", True),
        ("--tls-key-path", "whip_tls_key_path", None),
        ("--tls-cert-path", "whip_tls_cert_path", None),
        ("--tls-ca-cert-path", "whip_tls_ca_cert_path", None),
        ("--metrics-listen", "whip_metrics_listen", None),
        ("--fallback", "whip_fallback", False),
        ("--picker", "whip_picker", "random"),
        ("--outlier-ejection", "whip_outlier_ejection", False),
        ("--policy", "whip_policy", None),
        ("--plugin", "whip_plugins", []),
        ("--no-plugin", "whip_no_plugins", []),
        ("--plugin-set", "whip_plugin_set", []),
        ("--domain", "whip_domains", []),
        ("--downstream-request-id-header", "whip_downstream_request_id_header", None),
        ("--proxy-auth-username", "whip_proxy_auth_username", None),
        ("--proxy-auth-password-env", "whip_proxy_auth_password_env", "WHIP_PROXY_PASSWORD"),
        ("--proxy-auth-password-path", "whip_proxy_auth_password_path", None),
        ("--proxy-tls", "whip_proxy_tls", False),
        ("--proxy-tls-key-path", "whip_proxy_tls_key_path", None),
        ("--proxy-tls-cert-path", "whip_proxy_tls_cert_path", None),
    ],
)
def test_an_option_has_one_name_in_the_command_and_one_in_mitmproxy(
    flag: str, name: str, default: object
) -> None:
    option = settings.BY_NAME[name]
    assert (option.flag, option.default) == (flag, default)


def test_the_settings_say_what_the_options_say() -> None:
    found = settings.read(
        DEFAULTS
        | {
            "whip_external_tcp_address": "proxy.example",
            "whip_external_tcp_port": 9000,
            "whip_tls_key_path": "key.pem",
            "whip_tls_cert_path": "cert.pem",
            "whip_tls_ca_cert_path": "ca.pem",
            "whip_domains": ["TestDom.", "other"],
            "whip_dial_timeout": "2.5",
            "whip_wait": "30",
            "whip_fallback": True,
            "whip_plugins": ["a"],
            "whip_downstream_request_id_header": "X-Request-ID",
        }
    )
    assert (found.broker.external_host, found.broker.external_port) == ("proxy.example", 9000)
    assert (found.broker.tcp_listen_port, found.broker.grpc_listen_port) == (8000, 50051)
    assert found.broker.tls == TLSFiles.of("key.pem", "cert.pem", "ca.pem")
    assert found.broker.domains == ("testdom", "other")
    assert (found.broker.dial_timeout, found.wait, found.fallback) == (2.5, 30.0, True)
    assert (found.plugins.names, found.request_id_header) == (("a",), "X-Request-ID")
    assert found.door == settings.DoorSettings(client_ca=Path("ca.pem"))


def test_an_address_to_connect_back_to_may_stand_in_brackets() -> None:
    assert read(whip_external_tcp_address="[::1]").broker.external_host == "::1"
    assert read(whip_external_tcp_address="10.0.0.7").broker.external_host == "10.0.0.7"


def test_metrics_are_at_their_default_address_elsewhere_or_nowhere() -> None:
    for value, expected in (
        (None, ("127.0.0.1:9464", False)),
        ("127.0.0.1:9464", ("127.0.0.1:9464", True)),
        ("", ("", True)),
    ):
        found = read(whip_metrics_listen=value)
        assert (found.metrics_listen, found.metrics_chosen) == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"whip_external_tcp_address": None}, "give {whip_external_tcp_address}: "),
        (
            {"whip_external_tcp_address": "http://localhost"},
            "{whip_external_tcp_address}: 'http://localhost' is not a host name or address; ",
        ),
        ({"whip_external_tcp_address": "localhost:1"}, "{whip_external_tcp_address}: 'localhost:1"),
        ({"whip_external_tcp_address": "\udcff"}, "{whip_external_tcp_address}: '\\udcff' is not"),
        ({"whip_external_tcp_address": "0.0.0.0"}, "{whip_external_tcp_address}: 0.0.0.0 is not"),
        (
            {"whip_external_tcp_address": "[::]"},
            "{whip_external_tcp_address}: :: is not an address",
        ),
        ({"whip_tls": True}, "TLS is on, so give {whip_tls_key_path}, {whip_tls_cert_path}"),
        (
            {"whip_tls": True, "whip_tls_key_path": "k", "whip_tls_cert_path": "c"},
            "TLS is on, so give {whip_tls_ca_cert_path} (`whip pki",
        ),
        ({"whip_listen_host": "0.0.0.0"}, "refusing to listen on 0.0.0.0 without TLS"),
        ({"whip_tcp_listen_port": 65536}, "{whip_tcp_listen_port}: 65536 is not a port"),
        ({"whip_grpc_listen_port": -1}, "{whip_grpc_listen_port}: -1 is not a port"),
        ({"whip_external_tcp_port": 0}, "{whip_external_tcp_port}: 0 is not a port (1"),
        ({"whip_dial_timeout": "0"}, "{whip_dial_timeout}: '0' is not a number of seconds"),
        ({"whip_wait": "inf"}, "{whip_wait}: 'inf' is not a number of seconds"),
        ({"whip_domains": ["a b"]}, "{whip_domains}: 'a b' is not a host name"),
        (
            {"whip_proxy_auth_username": "me"},
            "{whip_proxy_auth_username} needs a password: the environment variable "
            "WHIP_PROXY_PASSWORD is not set ({whip_proxy_auth_password_env} or",
        ),
        (
            {"whip_proxy_auth_username": "me", "whip_proxy_auth_password_path": "/nowhere"},
            "{whip_proxy_auth_username} needs a password: cannot read /nowhere",
        ),
        (
            {"whip_proxy_auth_password_env": "ELSEWHERE"},
            "{whip_proxy_auth_password_env} needs {whip_proxy_auth_username}",
        ),
        (
            {"whip_proxy_auth_username": "me", "whip_proxy_auth_password_env": "NOT_UTF8"},
            "{whip_proxy_auth_username} needs a password: the password in the environment "
            "variable NOT_UTF8 is not UTF-8",
        ),
        (
            {"whip_proxy_auth_password_path": "p"},
            "{whip_proxy_auth_password_path} needs {whip_proxy_auth_username}",
        ),
        (
            {"whip_proxy_tls": True},
            "{whip_proxy_tls}, {whip_proxy_tls_key_path} and {whip_proxy_tls_cert_path} belong",
        ),
        (
            {"whip_proxy_tls_key_path": "k", "whip_proxy_tls_cert_path": "c"},
            "{whip_proxy_tls}, {whip_proxy_tls_key_path} and {whip_proxy_tls_cert_path} belong",
        ),
    ],
)
@pytest.mark.parametrize("spell", [lambda name: name, settings.by_flag])
def test_what_is_wrong_is_said_in_one_line_and_in_the_users_words(
    changes: dict[str, Any], says: str, spell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WHIP_PROXY_PASSWORD", raising=False)
    monkeypatch.setenv("NOT_UTF8", "\udcff\udcfe")
    with pytest.raises(SettingsError) as raised:
        settings.read(PLAIN | changes, spell)
    expected = says.format(**{name: spell(name) for name in settings.BY_NAME})
    assert str(raised.value).startswith(expected)
    assert "\n" not in str(raised.value)


def test_the_password_is_in_the_environment_or_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSEWHERE", "from the environment")
    file = tmp_path / "password"
    file.write_text("from the file\n")
    user: dict[str, Any] = {"whip_proxy_auth_username": "me"}
    found = read(**user, whip_proxy_auth_password_env="ELSEWHERE").door
    assert found.login == ("me", "from the environment")
    assert "environment" not in repr(found)
    found = read(**user, whip_proxy_auth_password_path=str(file)).door
    assert found.login == ("me", "from the file")


@pytest.mark.parametrize("content", ["", "\n", "with:colon\n", b"\xff\xfe"])
def test_a_password_that_cannot_be_used_is_refused(content: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match="needs a password"):
        read(whip_proxy_auth_username="me", whip_proxy_auth_password_path=str(file))


def test_only_some_settings_may_change_while_the_proxy_runs() -> None:
    before = read()
    assert not before.needs_restart_for(
        read(whip_fallback=True, whip_wait="1", whip_downstream_request_id_header="x")
    )
    assert before.needs_restart_for(read(whip_tcp_listen_port=8001))
    assert before.needs_restart_for(read(whip_plugins=["a"]))


class _Loader:
    """mitmproxy's, as far as declaring options goes."""

    def __init__(self) -> None:
        self.options = Options()

    def add_option(self, *arguments: Any) -> None:
        self.options.add_option(*arguments)


@pytest.fixture
def declared() -> Any:
    loader = _Loader()
    loader.options.set("whip_fallback", "whip_plugins=a", "whip_plugins=b", defer=True)
    loader.options.set("whip_tcp_listen_port=8001", "whip_metrics_listen=", defer=True)
    loader.options.update_defer(whip_grpc_listen_port=50052)  # as from config.yaml
    options.declare(loader)  # type: ignore[arg-type]
    return loader.options


def test_mitmproxys_options_take_what_was_set_before_they_were_known(declared: Any) -> None:
    options.take_deferred(declared)
    assert declared.whip_fallback is True
    assert declared.whip_plugins == ["a", "b"]
    assert (declared.whip_tcp_listen_port, declared.whip_grpc_listen_port) == (8001, 50052)
    assert declared.whip_metrics_listen == ""
    assert declared.deferred == {}
    declared.update(whip_external_tcp_address="localhost", whip_tls=False)
    assert options.settings_from(declared).broker.tcp_listen_port == 8001


@pytest.mark.parametrize(
    "specs", [("whip_tls=maybe",), ("whip_picker=a", "whip_picker=b"), ("whip_picker",)]
)
def test_a_value_that_does_not_fit_is_named_and_taken_away(
    declared: Any, specs: tuple[str, ...]
) -> None:
    earlier = Options()
    earlier.set(*specs, defer=True)
    declared.deferred.clear()
    declared.deferred.update(earlier.deferred)
    with pytest.raises(SettingsError, match=specs[0].partition("=")[0]):
        options.take_deferred(declared)
    assert declared.deferred == {}


def test_a_value_of_the_wrong_type_in_the_configuration_file_is_named(declared: Any) -> None:
    declared.deferred.clear()
    declared.deferred["whip_tcp_listen_port"] = "8000"
    with pytest.raises(SettingsError, match="whip_tcp_listen_port"):
        options.take_deferred(declared)


def test_an_option_that_does_not_exist_is_an_error_with_a_hint(declared: Any) -> None:
    declared.deferred.clear()
    declared.update_defer(another_addons=1)
    options.check_unknown(declared)
    declared.update_defer(whip_domain="testdom")
    with pytest.raises(SettingsError, match="no option whip_domain: did you mean whip_domains"):
        options.check_unknown(declared)


def test_mitmproxys_command_line_stays_as_it_is(declared: Any) -> None:
    """No option of ours takes a name of mitmproxy's."""
    assert all(option.name.startswith("whip_") for option in settings.OPTIONS)
    assert mitmdump(declared).parse_args(["--set", "whip_fallback=true"]).setoptions
