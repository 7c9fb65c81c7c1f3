"""What a URL may name, and what an attacker may not reach."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.types import Receive, Scope, Send

from pvlm import ConfigError
from pvlm.serving import ServerConfig
from pvlm.serving.folders import MediaFolder
from pvlm.serving.references import Encoded, LocalFile, RemoteFile, reference
from pvlm.serving.refusals import Refusal
from pvlm.serving.remote import Addresses, RemoteFiles
from tests.serving.conftest import listening

pytestmark = pytest.mark.anyio


# ---- URLs ---------------------------------------------------------------------------------------------------------


def test_urls_name_bytes_local_files_and_remote_files() -> None:
    assert reference("data:video/mp4;codecs=avc1;base64,AAEC") == Encoded(b"\0\1\2")
    assert reference("DATA:image/png;base64,AAEC") == Encoded(b"\0\1\2")
    assert reference("file:///a/b%20c.mp4") == LocalFile("/a/b c.mp4")
    assert reference("https://Example.ORG./v.mp4?x=1#top") == RemoteFile("https", "example.org", 443, "/v.mp4?x=1")
    assert reference("http://[::1]:81/") == RemoteFile("http", "::1", 81, "/")


@pytest.mark.parametrize(
    "url",
    [
        "", "clip.mp4", "/etc/passwd", "ftp://host/a", "javascript:1", "concat:a|b", "unix:/run/x",
        "data:video/mp4,AAEC", "data:text/html;base64,AAEC", "data:;base64,AAEC", "data:video/mp4;base64,",
        "data:video/mp4;base64,A*==", "data:video/mp4;base64,AA EC", "data:video/jpeg;base64,AAEC,AAEC",
        "data:video/mp4;base64,\N{LATIN SMALL LETTER E WITH ACUTE}", "data:video/mp4;base64,\ud800",
        "file://host/a", "file:a", "file:///a%00b", "file:///%ff",
        "http://", "http:///a", "http://u:p@host/", "http://u@host/", "http://host:99999/", "http://host:x/",
        "http://ho st/", "http://host/a\r\nX: y", "http://host/\N{LATIN SMALL LETTER E WITH ACUTE}", "http://[::1/",
        f"http://{'a' * 70}.example/",
    ],
)  # fmt: skip
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(Refusal) as caught:
        reference(url)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_the_header_of_a_data_url_is_short() -> None:
    assert reference(f"data:video/mp4;codecs={'a' * 900};base64,AAEC") == Encoded(b"\0\1\2")
    with pytest.raises(Refusal):
        reference(f"data:video/mp4{600 * ';a=b'};base64,AAEC")


@pytest.mark.parametrize("url", ["http://" + 20_000 * "a.", "http://" + 9_000 * "\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_long_url_is_refused_before_it_is_taken_apart(url: str) -> None:
    with pytest.raises(Refusal, match="it may have 8192") as caught:
        reference(url)
    assert len(caught.value.message) < 500


# ---- local files --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    allowed = tmp_path / "allowed"
    (allowed / "inner").mkdir(parents=True)
    (allowed / "clip.mp4").write_bytes(b"clip")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "allowed-too").mkdir()
    (tmp_path / "allowed-too" / "secret").write_bytes(b"secret")
    (allowed / "out").symlink_to(tmp_path)
    (allowed / "link").symlink_to(tmp_path / "secret")
    (allowed / "chain").symlink_to(allowed / "link")
    (allowed / "within").symlink_to(allowed / "clip.mp4")
    os.mkfifo(allowed / "pipe")
    return allowed


@pytest.mark.parametrize("name", ["clip.mp4", "inner/../clip.mp4", "within", "./inner/./../within"])
def test_files_below_the_folder_are_read(folder: Path, name: str) -> None:
    with MediaFolder(str(folder)).opened(f"{folder}/{name}") as path:
        assert Path(path).read_bytes() == b"clip"
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    "name",
    [
        "../secret", "inner/../../secret", "link", "chain", "out/secret", "out/allowed-too/secret",
        "../allowed-too/secret", "missing", "pipe", "inner", "", "clip.mp4/x", "../missing", "n" * 300,
    ],
)  # fmt: skip
def test_nothing_else_is(folder: Path, name: str) -> None:
    with pytest.raises(Refusal) as caught, MediaFolder(str(folder)).opened(f"{folder}/{name}"):
        pytest.fail("it was opened")
    assert "secret" not in caught.value.message


def test_a_refusal_does_not_say_whether_a_file_outside_exists(folder: Path) -> None:
    messages = set()
    for name in ("../secret", "../missing", "/etc/passwd"):
        with pytest.raises(Refusal) as caught, MediaFolder(str(folder)).opened(os.path.join(folder, name)):
            pytest.fail("it was opened")
        messages.add(caught.value.message)
    assert len(messages) == 1


def test_a_link_that_changes_after_the_check_leads_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look at the path sees a file below the folder; then the attacker puts a link there."""
    victim = folder / "inner" / "video"
    victim.write_bytes(b"clip")
    resolved = os.path.realpath

    def look(path: str, **options: Any) -> str:
        found = resolved(path, **options)
        victim.unlink(missing_ok=True)
        victim.symlink_to(folder.parent / "secret")
        return found

    allowed = MediaFolder(str(folder))
    monkeypatch.setattr(os.path, "realpath", look)
    with pytest.raises(Refusal), allowed.opened(str(victim)):
        pytest.fail("it was opened")


def test_without_a_folder_no_file_is_read(folder: Path) -> None:
    with pytest.raises(Refusal, match="--allowed-local-media-path"), MediaFolder(None).opened(f"{folder}/clip.mp4"):
        pytest.fail("it was opened")
    with pytest.raises(ConfigError, match="no folder"):
        ServerConfig(allowed_local_media_path=f"{folder}/clip.mp4")


# ---- other hosts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "239.1.1.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "ff0e::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2001:0:1:2:3:4:80ff:fffe",
    ],
)  # fmt: skip
def test_no_private_address_is_connected_to(address: str) -> None:
    assert not Addresses([]).allows(address)


def test_public_addresses_and_listed_networks_are() -> None:
    assert Addresses([]).allows("93.184.216.34")
    assert Addresses([]).allows("2606:2800:220:1:248:1893:25c8:1946")
    assert Addresses(["127.0.0.0/8"]).allows("127.0.0.1")
    assert Addresses(["127.0.0.0/8"]).allows("::ffff:127.0.0.1")
    assert not Addresses(["127.0.0.0/8"]).allows("10.0.0.1")
    with pytest.raises(ConfigError, match="allowed_media_networks"):
        ServerConfig(allowed_media_networks=("127.0.0.1/8",))


class Host:
    """An application that serves videos, and what else a host may do."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.hosts: list[str] = []
        self.redirects: dict[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        self.asked.append(path)
        self.hosts.append(dict(scope["headers"])[b"host"].decode())

        async def reply(status: int, headers: list[tuple[bytes, bytes]], *pieces: bytes) -> None:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})

        if path in self.redirects:
            await reply(302, [(b"location", self.redirects[path].encode())])
        elif path == "/endless":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(1000):
                await send({"type": "http.response.body", "body": bytes(1000), "more_body": True})
        elif path == "/slow":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await anyio.sleep(1)
        elif path == "/clip":
            await reply(200, [], b"cl", b"ip")
        else:
            await reply(404, [])


Fetch = Callable[[str], Awaitable[bytes]]


@asynccontextmanager
async def fetching(**settings: Any) -> AsyncIterator[tuple[Host, str, Fetch, list[int]]]:
    """A host on loopback, its address, a way to fetch from it, and the sizes of the pieces."""
    host, sizes = Host(), []
    async with listening(host) as url:
        address = url.removeprefix("http://")
        given = {"domains": [address], "networks": ["127.0.0.0/8"], "timeout_s": 10.0, **settings}
        files = RemoteFiles(**given)

        async def fetch(name: str) -> bytes:
            file = reference(name if "://" in name else f"{url}{name}")
            assert isinstance(file, RemoteFile)
            return await files.fetch(file, sizes.append, 5000)

        yield host, address, fetch, sizes


async def test_a_listed_host_is_fetched_from() -> None:
    async with fetching() as (host, address, fetch, sizes):
        assert await fetch("/clip") == b"clip"
        assert sum(sizes) == 4
        host.redirects = {"/a": "/b", "/b": f"http://{address}/clip"}
        assert await fetch("/a") == b"clip"
        assert set(host.hosts) == {address}
        with pytest.raises(Refusal, match="status 404"):
            await fetch("/missing")


async def test_nothing_is_fetched_from_other_hosts_and_ports() -> None:
    async with fetching(domains=["127.0.0.1", "example.org"]) as (host, address, fetch, _):
        for url in ("/clip", f"http://localhost:{address.split(':')[1]}/clip", "http://example.org.evil/", "http://x/"):
            with pytest.raises(Refusal, match="--allowed-media-domains"):
                await fetch(url)
        assert host.asked == []


async def test_a_listed_name_of_a_private_address_is_not_connected_to() -> None:
    async with fetching(networks=[]) as (host, _, fetch, _):
        with pytest.raises(Refusal, match="no address"):
            await fetch("/clip")
        assert host.asked == []


async def test_redirects_do_not_lead_off_the_list() -> None:
    async with fetching() as (host, _, fetch, _), fetching() as (other, elsewhere, *_):
        for place in (
            f"http://{elsewhere}/clip",
            "file:///etc/passwd",
            "data:video/mp4;base64,AAEC",
            "//localhost/clip",
        ):
            host.redirects = {"/a": place}
            with pytest.raises(Refusal):
                await fetch("/a")
        host.redirects = {"/a": "/a"}
        with pytest.raises(Refusal, match="redirected more than 3 times"):
            await fetch("/a")
        assert other.asked == []


async def test_the_checked_address_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that first gives an allowed address and then another one gains nothing."""
    asked = []

    async def getaddrinfo(name: str, port: int, **options: Any) -> list[Any]:
        asked.append(name)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(2, 1, 6, "", ("192.0.2.7", port)), (2, 1, 6, "", (address, port))]

    async with fetching() as (host, address, _, _):
        monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
        port = address.split(":")[1]
        files = RemoteFiles([f"video.test:{port}"], ["127.0.0.1/32"], 10.0)
        found = await files.fetch(RemoteFile("http", "video.test", int(port), "/clip"), lambda size: None, 100)
    assert found == b"clip"
    assert asked == ["video.test"]
    assert host.hosts == [f"video.test:{port}"]


async def test_size_and_time_are_bounded() -> None:
    async with fetching(timeout_s=0.3) as (_, _, fetch, sizes):
        with pytest.raises(Refusal, match="more than 5000 bytes") as caught:
            await fetch("/endless")
        assert caught.value.status == 413
        assert sum(sizes) <= 5000
        with pytest.raises(Refusal, match=r"longer than 0\.3 s"):
            await fetch("/slow")


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with fetching() as (_, _, fetch, _):
        assert await fetch("/clip") == b"clip"


def test_an_encoded_video_is_the_bytes_that_were_encoded() -> None:
    content = os.urandom(1000)
    assert reference(f"data:video/webm;base64,{b64encode(content).decode()}") == Encoded(content)
