"""What is kept of the addresses of search results."""

from __future__ import annotations

import json

import pytest

from sailkit.errors import UserError
from sailkit.records import SearchResult
from sailkit.retrieval.instructions import make_result, read_searched
from sailkit.urls import public_address, server_url


@pytest.mark.parametrize(
    "address",
    [
        "", "https://a.test/?q=1", "HTTPS://A.test/x#y", "http://8.8.8.8/", "http://[2606:4700::1111]:8080/",
        "docs/a b.md", "10.1000/182", "doi:10.1000/182", "https://de.wikipedia.org/wiki/Köln", "https://a.test/@user",
        "https://fabc.de/", "https://a.test/http://127.0.0.1/", "https://localhost.example/",
        "https://thelocal.se/", "mailto:a@b.test",
    ],
)  # fmt: skip
def test_public_addresses_stay_as_they_are(address):
    assert public_address(address) == address


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://user:secret@a.test/x?y=1#z", "https://a.test/x?y=1#z"),
        ("https://user@a.test:8443/", "https://a.test:8443/"),
        ("https://a%40b:c@d@a.test/", "https://a.test/"),
        ("//user:secret@a.test/x", "//a.test/x"),
        ("ftp://user:secret@a.test/x", "ftp://a.test/x"),
    ],
)
def test_user_and_password_are_left_out(address, kept):
    assert public_address(address) == kept


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST.", "a.localhost", "printer.local", "metadata.google.internal", "127.0.0.1", "127.8.9.1",
        "127.1", "0x7f.1", "2130706433", "017700000001", "0.0.0.0", "169.254.169.254", "10.0.0.5", "172.16.3.4",
        "192.168.1.1", "100.64.0.1", "[::1]", "[::]", "[fe80::1]", "[fe80::1%25eth0]", "[fd00::1]",
        "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[2002:7f00:1::]", "１２７.０.０.１", "127。0。0。1",
        "%31%32%37.0.0.1",
        "user:secret@127.0.0.1",
    ],
)  # fmt: skip
def test_hosts_that_are_others_for_each_reader_are_dropped(host):
    for address in (f"http://{host}/x", f"HTTPS://{host}:8080", f"//{host}/x", f" http://{host}"):
        assert public_address(address) == ""


@pytest.mark.parametrize(
    "address",
    ["http:/127.0.0.1/", "http:127.0.0.1", "http:\\\\127.0.0.1\\x", "http://127.0.0.1\\@a.test/", "http://[::1/", "https://",
     "http://a.test/\x1b]0;x\x07", "http://a.test/\u202egnp", "//\\[x"],
)  # fmt: skip
def test_what_browsers_read_otherwise_or_not_at_all_is_dropped(address):
    assert public_address(address) == ""


def test_results_of_every_source_pass_here(tmp_path):
    assert make_result("bm25", 1, "T", "B", "https://me:pw@a.test/").url == "https://a.test/"
    row = {"instruction": "i", "results": [{"body": "B", "url": "http://localhost:8888/admin"}]}
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    (searched,) = read_searched(tmp_path / "results.jsonl")
    assert searched.results[0].url == ""
    assert SearchResult("B", url="http://169.254.169.254/latest/meta-data").url == ""
    assert SearchResult(**{"body": "B", "url": None}).url == ""


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8080", "the server cannot be read; it should be like http://here"),
        ("ftp://host", "cannot be read"),
        ("http://", "cannot be read"),
        ("http://host:0", "cannot be read"),
        ("http://host:99999", "cannot be read"),
        ("http://ho st", "cannot be read"),
        ("http://host/\n", "cannot be read"),
        ("http://me:secret@host", r"takes no user:password@.*; use a variable$"),
        ("http://host/?key=secret", "takes no user:password@, .query or #fragment"),
        ("http://host/#v1", "takes no user:password@, .query or #fragment"),
    ],
)
def test_a_server_url_that_cannot_be_used_or_kept_is_refused(url, message):
    with pytest.raises(UserError, match=message) as caught:
        server_url(url, "the server", like="http://here", secrets="; use a variable")
    assert "secret" not in str(caught.value)


def test_a_server_url_has_no_final_slash():
    assert server_url("https://host:8000/v1/", "the server", like="http://here") == "https://host:8000/v1"
