"""What the page may say, and who may say it; nothing here needs torch."""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from experiments.generation.events import NewKeys, NewPrompt, NewSteps
from experiments.live.access import COOKIE, guard, is_loopback, new_token
from experiments.live.protocol import (
    COMMANDS,
    HEADER,
    KEY_BITS,
    LONGEST,
    Shown,
    Start,
    packed,
    parse,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["prompt", "seed", "steps", "lanes", "record", "text", "how", "frame", "keys", "x"]
)


@given(st.one_of(
    st.text(max_size=200),
    JSON.map(json.dumps),
    st.builds(lambda kind, rest: json.dumps({**rest, "type": kind}),
              st.sampled_from([*COMMANDS, "strat"]), st.dictionaries(KEYS, JSON, max_size=4)),
))  # fmt: skip
@trials(max_examples=150)
def test_any_message_is_a_command_or_refused(message):
    try:
        command = parse(message)
    except ValueError as refused:
        assert str(refused)
    else:
        assert isinstance(command, tuple(COMMANDS.values()))


@pytest.mark.parametrize(
    ("message", "command"),
    [
        ({"type": "start", "prompt": "a", "seed": 3}, Start("a", 3)),
        ({"type": "prompt", "text": "b", "how": "cut"}, NewPrompt("b", "cut")),
        ({"type": "steps", "steps": 1}, NewSteps(1)),
        ({"type": "shown", "frame": 7}, Shown(7)),
        ({"type": "keys", "keys": ["w", "left"]}, NewKeys(("j", "w"))),
        ({"type": "keys", "keys": []}, NewKeys(())),
    ],
)
def test_commands(message, command):
    assert parse(json.dumps(message)) == command


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("[" * LONGEST, "not JSON"),
        ("x" * (LONGEST + 1), "more than 4096 bytes"),
        ('{"type": "strat"}', "no command 'strat'; did you mean 'start'"),
        ('{"type": "start"}', "start.prompt"),
        ('{"type": "start", "prompt": "a", "prmpt": 1}', "prmpt"),
        (
            '{"type": "start", "prompt": "a", "steps": 0}',
            "start.steps: 0 must be a whole number",
        ),
        ('{"type": "start", "prompt": "a", "seed": 1e99}', "start.seed"),
        (
            '{"type": "prompt", "text": "a", "how": "soon"}',
            "prompt.how: 'soon' must be one of",
        ),
        ('{"type": "start", "prompt": "\\ud800"}', "cannot be shown"),
        ('{"type": "steps", "steps": true}', "steps.steps"),
        ('{"type": "keys", "keys": ["x"]}', "there is no key 'x'; there are w, s, a, d"),
        ('{"type": "keys", "keys": "w"}', "keys.keys: 'w' must be a list"),
    ],
)
def test_nonsense_is_named(message, said):
    with pytest.raises(ValueError) as refused:
        parse(message)
    assert said in str(refused.value)


def test_a_frame_has_a_header_of_32_bytes():
    message = packed(1, 70, 12, {"w", "l"}, (0.002, 0.001), "ff" * 8, b"image")
    assert HEADER.size == 32 and message[32:] == b"image"
    version, lane, keys, frame, block, _, denoise, decode, digest = HEADER.unpack(message[:32])
    assert (version, lane, frame, block, digest) == (1, 1, 70, 12, 2**64 - 1)
    assert keys == KEY_BITS["w"] | KEY_BITS["l"] and len({*KEY_BITS.values()}) == 8
    assert (round(denoise, 3), round(decode, 3)) == (2, 1)


# -- who ------------------------------------------------------------------------------------------


def asked(headers, token=None, path="/", host="127.0.0.1"):
    """Status and headers of the answer to a request."""

    async def ask():
        app = web.Application(middlewares=[guard(host, token)])
        app.router.add_get("/", lambda _: asyncio.sleep(0, web.Response(text="page")))
        async with TestClient(TestServer(app)) as client:
            own = f"127.0.0.1:{client.port}"
            given = {key: value.replace("OWN", own) for key, value in headers.items()}
            response = await client.get(path, headers=given, allow_redirects=False)
            return response.status, response.headers

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://OWN"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "https://OWN"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
    ],
)
def test_only_its_own_page_is_answered(headers, status):
    found, answered = asked(headers)
    assert found == status
    assert "default-src 'none'" in answered["Content-Security-Policy"]
    assert not [name for name in answered if name.lower().startswith("access-control")]


def test_a_token_is_moved_to_a_cookie():
    token = new_token()
    assert asked({}, token)[0] == 403
    assert asked({}, token, "/?token=wrong")[0] == 403
    assert asked({"Cookie": f"{COOKIE}=wr\u00f6ng"}, token)[0] == 403
    status, headers = asked({}, token, f"/?token={token}")
    assert status == 302 and headers["Location"] == "/"
    assert "HttpOnly" in headers["Set-Cookie"] and "SameSite=Strict" in headers["Set-Cookie"]
    assert asked({"Cookie": f"{COOKIE}={token}"}, token)[0] == 200


def test_behind_a_proxy_the_page_may_come_by_tls():
    token = new_token()
    for origin, status in (
        ("https://OWN", 200),
        ("http://OWN", 200),
        ("https://evil.example", 403),
    ):
        headers = {"Cookie": f"{COOKIE}={token}", "Origin": origin}
        assert asked(headers, token, host="0.0.0.0")[0] == status


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True),
                        ("0.0.0.0", False), ("192.168.1.2", False), ("box.lan", False)],
)  # fmt: skip
def test_loopback(host, local):
    assert is_loopback(host) is local
