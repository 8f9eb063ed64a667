"""No secret of a URL gets into what we write, and none is repeated by the line that refuses it."""

from __future__ import annotations

import pytest

from shards import store
from shards.url_secrets import carries_secret, masked, refuse_secrets, without_secrets

SECRET = [
    "https://me:PW@host/ds@1",
    "https://TOKEN@host/a.tar",
    "https://host/a.tar?sig=S",
    "https://host/a.tar?x=1&token=S",
    "https://host/a.tar?x=1;access_token=S",
    "https://b.s3.amazonaws.com/a.tar?X-Amz-Signature=S&X-Amz-Credential=C",
    "https://host/a.tar?AWSAccessKeyId=A&Signature=S&Expires=1",
    "https://host/a.tar?Policy=S&Key-Pair-Id=K",
    "https://host/a.tar?sv=2022&sig=S#part",
    "s3://KEY:SECRET@bucket/x",
]
PLAIN = [
    "s3://bucket/x@3",
    "s3://bucket/a@b",
    "/folder/x?sig=1",
    "https://host/list.csv?download=1&page=2",
    "https://h/a@b",
]
PLAIN += ["https://host/a?signs=1&monkeys=2&design=3"]


@pytest.mark.parametrize("url", SECRET)
def test_a_secret_is_seen_refused_without_being_repeated_and_removed(url: str) -> None:
    assert carries_secret(url)
    with pytest.raises(ValueError, match=r"^--data is a URL with a user name, signature or key") as refused:
        refuse_secrets(**{"--data": url})
    for word in ("PW", "TOKEN", "=S", "SECRET", "KEY:"):
        assert word not in str(refused.value)
        assert word not in masked(url)
        assert word not in without_secrets(url)
    assert not carries_secret(without_secrets(url))
    with pytest.raises(ValueError, match=r"^out is a URL with"):
        store.require(out=url)


@pytest.mark.parametrize("url", PLAIN)
def test_what_is_no_secret_stays_to_the_letter(url: str) -> None:
    assert not carries_secret(url)
    assert masked(url) == without_secrets(url) == url
    store.require(data=url)


def test_text_of_strangers_is_masked_wherever_it_holds_a_url() -> None:
    line = "x\tftp://me:PW@host/a.jpg and https://h/?a=1&token=S&b=2 too"
    assert masked(line) == "x\tftp://…@host/a.jpg and https://h/?a=1&token=…&b=2 too"
