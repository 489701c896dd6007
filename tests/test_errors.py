"""The errors as those see them who know only Python's own."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest

from whip_core import errors
from whip_core.errors import WhipError

TEXT = "x.testdom:80: no agent is registered under it"
NUMBERS = {
    errors.UnknownName: errno.ECONNREFUSED,
    errors.PortNotExposed: errno.ECONNREFUSED,
    errors.ServiceRefused: errno.ECONNREFUSED,
    errors.Busy: errno.ECONNREFUSED,
    errors.AgentGone: errno.ECONNRESET,
    errors.StreamReset: errno.ECONNRESET,
    errors.StreamCut: errno.ECONNRESET,
    errors.DialTimeout: errno.ETIMEDOUT,
    errors.NotAuthorized: errno.EACCES,
    errors.BrokerClosed: errno.ECONNABORTED,
    errors.RemoteProtocolError: errno.EPROTO,
    errors.AddressInUse: errno.EADDRINUSE,
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_an_error_has_the_number_that_its_built_in_stands_for(kind: type[WhipError]) -> None:
    error = kind(TEXT)
    assert isinstance(error, OSError)
    assert error.errno == NUMBERS[kind]
    assert str(error) == TEXT
    assert isinstance(error, type(OSError(NUMBERS[kind], TEXT)))


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_copy_says_the_same(kind: type[WhipError], copied: object) -> None:
    assert callable(copied)
    twin = copied(kind(TEXT))
    assert (type(twin), str(twin), twin.errno) == (kind, TEXT, NUMBERS[kind])


def test_a_copied_refusal_says_which_limit_it_was() -> None:
    assert copy.copy(errors.Busy(TEXT, reason="streams")).reason == "streams"
