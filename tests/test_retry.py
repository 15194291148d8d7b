"""Which requests are sent again, and after how long."""

from __future__ import annotations

import datetime
import email.utils

import pytest

from sailkit.retry import is_transient, pause, retry_after


def test_retry_after_may_be_a_date_and_is_capped():
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    assert 25 < retry_after(email.utils.format_datetime(soon, usegmt=True)) <= 30
    assert retry_after("7") == 7
    assert retry_after("3600") == 60
    assert retry_after("inf") == 60
    for nonsense in ("-5", "nan", "soon", "", "Mon, 99 Foo 2020"):
        assert retry_after(nonsense) == 0
    assert retry_after(None) == 0


def test_waits_double_up_to_a_minute_with_jitter_and_add_to_what_the_server_asks_for():
    for failures, mean in ((1, 2), (2, 4), (4, 16), (9, 60)):
        waits = [pause(failures, 2) for _ in range(200)]
        assert mean * 0.5 <= min(waits) < mean * 0.7
        assert mean * 1.3 < max(waits) <= mean * 1.5
    assert 11 <= pause(1, 2, server_wait=10) <= 13


@pytest.mark.parametrize(("status", "expected"), [(400, False), (403, False), (404, False), (429, True), (503, True)])
def test_only_failures_that_pass_are_tried_again(status, expected):
    assert is_transient(status) == expected
