"""Header fields as they came."""

from __future__ import annotations

from mitmproxy.http import Headers
from mitmproxy.test import tutils

from whip_addon.fields import text, values


def test_each_value_of_a_name_is_told_whatever_the_names_case() -> None:
    request = tutils.treq(
        headers=Headers(((b"HOST", b"a.testdom"), (b"Accept", b"*/*"), (b"host", b"")))
    )
    assert values(request, b"host") == [b"a.testdom", b""]
    assert values(request, b"x-forwarded-for") == []


def test_a_value_that_is_no_text_is_read_as_mitmproxy_reads_it() -> None:
    request = tutils.treq(headers=Headers(((b"x", b"\xff\xc3\xa9"),)))
    assert [text(value) for value in values(request, b"x")] == request.headers.get_all("x")
