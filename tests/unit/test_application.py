"""What the application makes of the broker's URL."""

from __future__ import annotations

import ssl

import pytest

from capflow_tasks.fleet.application import make_app
from capflow_tasks.settings import Settings


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("redis://redis/0", None),
        ("rediss://redis/0", ssl.CERT_REQUIRED),
        ("rediss://redis/0?ssl_ca_certs=/ca.crt", ssl.CERT_REQUIRED),
        ("rediss://redis/0?ssl_cert_reqs=none", ssl.CERT_NONE),
    ],
)
def test_a_certificate_is_checked_unless_the_url_says_otherwise(url: str, checked: object) -> None:
    tls = make_app(Settings(), url).conf.broker_use_ssl

    assert (tls and tls["ssl_cert_reqs"]) == checked
