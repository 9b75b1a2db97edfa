"""What addresses lose before they are shown, and what they keep."""

import pytest

from raml_ray import presets
from raml_ray.config import dump, load, override
from raml_ray.redacted import without_secrets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:hunter2@host/x", "https://***@host/x"),
        ("https://hunter2@host/x", "https://***@host/x"),
        ("s3://key:hun/ter2@host/b", "s3://***@host/b"),  # a secret key as AWS writes it
        ("http://me:hunt@er2@host:80/x", "http://***@host:80/x"),
        ("http://me:hunter2:/@host", "http://***@host"),
        ("http://me:4711@host", "http://***@host"),
        ("mysql+pymysql://me:hunter2@host/db", "mysql+pymysql://***@host/db"),
        ("simplecache::s3://k:hunter2@b and http://me:hunter2@host.", "simplecache::s3://***@b and http://***@host."),
        ("http://me:hunter2@a,http://me:hunter2@b", "http://***@a,http://***@b"),
        ("https://host/x?token=hunter2", "https://host/x?token=***"),
        ("https://host/x?v=1&password=hunter2&w=2#end", "https://host/x?v=1&password=***&w=2#end"),
        ("postgresql://host/db?user=me&Passwd=hunter2", "postgresql://host/db?user=me&Passwd=***"),
        (
            "https://b.s3.amazonaws.com/x?X-Amz-Credential=hunter2%2F2&X-Amz-Date=3&X-Amz-Signature=hunter2",
            "https://b.s3.amazonaws.com/x?X-Amz-Credential=***&X-Amz-Date=3&X-Amz-Signature=***",
        ),
        ("https://a.blob.core.windows.net/x?sv=1&sig=hunter2", "https://a.blob.core.windows.net/x?sv=1&sig=***"),
        ("https://host/x?next=https://me:hunter2@b/?api_key=hunter2", "https://host/x?next=https://***@b/?api_key=***"),
    ],
)
def test_no_way_of_writing_a_secret_into_an_address_shows_it(address: str, shown: str) -> None:
    assert without_secrets(address) == shown
    assert without_secrets(shown) == shown, "what was hidden once"


@pytest.mark.parametrize(
    "harmless",
    [
        "s3://bucket/models/x@v2",
        "http://mlflow:5000/models/x@v2",
        "http://[::1]:5000/x@v2",
        "abfs://runs@account.dfs.core.windows.net/x",
        "https://host/x?split=test&limit=3",
        "write to someone@host; key=3?",
        "sqlite:////srv/mlflow.db",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(harmless: str) -> None:
    assert without_secrets(harmless) == harmless


def test_a_configuration_without_its_secrets_is_one_still() -> None:
    config = override(
        presets.smoke(),
        {"tracking.uri": 'http://me:hun"ter2@host', "data.path": "https://host/x?sig=hunter2"},
    )
    shown = load(without_secrets(dump(config)), "config.json")
    assert (shown.tracking.uri, shown.data.path) == ("http://***@host", "https://host/x?sig=***")
