"""Where the links of hawkBit's interface lead: never past the TLS that stands before the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hub_worlds import world
from test_hub_ddi import R1, controller, image

from edgestill.core.errors import SettingError
from edgestill.hub.main import main
from edgestill.hub.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from hub_worlds import World
    from test_hub_ddi import Controller


def hrefs(there: World, one: Controller) -> list[str]:
    """Every link of a poll and of the deployment that it leads to."""
    there.give_root()
    there.publish("1.0.0")
    there.admin("PUT", "images", image("1.0.0"))
    there.roll_out(R1)
    poll = one.call("GET").json["_links"]
    deployment = one.call("GET", "/deploymentBase/1").json
    (artefact,) = deployment["deployment"]["chunks"][0]["artifacts"]
    return [link["href"] for link in (*poll.values(), *artefact["_links"].values())]


def test_attack_a_proxy_that_ends_tls_gets_no_token_sent_in_the_clear(tmp_path: Path) -> None:
    """The hub itself is asked by http; what it tells the device to ask is https throughout."""
    with world(tmp_path / "hub", settings=Settings(behind_proxy=True, longest_poll=5)) as there:
        there.give_root()
        one = controller(there)
        found = hrefs(there, one)
        assert len(found) == 4
        assert all(href.startswith(f"https://hub.test:81{one.base}/") for href in found), found


def test_attack_a_host_header_does_not_move_links_of_a_hub_that_knows_its_address(tmp_path: Path) -> None:
    """Every link begins with the public address, whoever is named in the request."""
    settings = Settings(public_url="https://hub.example/fleet", longest_poll=5)
    with world(tmp_path / "hub", settings=settings) as there:
        there.give_root()
        one = controller(there)
        found = hrefs(there, one)
        assert all(href.startswith(f"https://hub.example/fleet{one.base}/") for href in found), found
        for host in ("elsewhere.example", "a b", ""):
            links = one.call("GET", host=host).json["_links"]
            assert links["configData"]["href"] == f"https://hub.example/fleet{one.base}/configData"


@pytest.mark.parametrize(
    "url",
    [
        "hub.example",
        "http://hub.example",
        "ftp://hub.example",
        "https://",
        "https://hub.example/",
        "https://hub.example/?a=b",
        "https://user@hub.example",
        "https://hub.example:999999",
        'https://hub.example/"x',
        "https://hub.example\n",
    ],
)
def test_a_public_address_that_no_link_should_lead_to_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    """In the clear over a network, or no address: one line before anything starts."""
    with pytest.raises(SettingError, match="no address that links may lead to"):
        Settings(public_url=url)
    assert main(["up", "--home", str(tmp_path / "hub"), "--port", "0", "--public-url", url]) == 1
    assert "no address that links may lead to" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("url", ["https://hub.example:8443", "http://127.0.0.1:8080", "http://[::1]:80/a/b"])
def test_a_public_address_may_be_any_that_is_safe(url: str) -> None:
    """By TLS, or on the machine itself."""
    assert Settings(public_url=url).public_url == url
