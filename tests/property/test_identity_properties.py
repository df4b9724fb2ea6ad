from __future__ import annotations

from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import BadRequestError
from p2p.identity import identify, origin_key, recognise, redact
from p2p.stores import SIGNING_PARAMETERS, Store

SECRETS = st.text("0123456789abcdef", min_size=24, max_size=24).map("SECRET".__add__)
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
OTHER_PARAMETERS = st.lists(
    st.tuples(st.sampled_from(["versionId", "partNumber", "session", "a", "ü"]), st.text("xyz/+=& ", max_size=4)),
    max_size=3,
)

# Per store: a host, and the parameters that prove a signature of its own.
SIGNATURES = [
    ("http://minio:9000", ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-Security-Token")),
    ("https://b.s3.eu-west-1.amazonaws.com", ("X-Amz-Credential", "X-Amz-Signature", "X-Amz-Date")),
    ("http://s3.amazonaws.com/b", ("AWSAccessKeyId", "Expires", "Signature")),
    ("https://storage.googleapis.com/b", ("X-Goog-Credential", "X-Goog-Signature")),
    ("https://b.storage.googleapis.com", ("GoogleAccessId", "Expires", "Signature")),
    ("https://a.blob.core.windows.net/c", ("sv", "sr", "sig", "se", "skoid")),
    ("https://b.oss-cn-hangzhou.aliyuncs.com", ("OSSAccessKeyId", "Expires", "Signature", "security-token")),
    ("https://b.obs.cn-north-4.myhuaweicloud.com", ("AccessKeyId", "Expires", "Signature")),
]


def _url(base: str, key: str, parameters: list[tuple[str, str]]) -> str:
    query = "&".join(f"{quote(name)}={quote(value, safe='')}" for name, value in parameters)
    return f"{base}/{quote(key)}?{query}"


@given(data=st.data(), key=KEYS, others=OTHER_PARAMETERS, signature=st.sampled_from(SIGNATURES))
def test_a_new_signature_is_the_same_task(
    data: st.DataObject, key: str, others: list[tuple[str, str]], signature: tuple[str, tuple[str, ...]]
) -> None:
    base, names = signature
    urls, secrets = [], []
    for _ in range(2):
        signed = [(name, data.draw(SECRETS)) for name in names]
        secrets += [value for _, value in signed]
        urls.append(_url(base, key, data.draw(st.permutations(signed + others))))
    # The parameters that stay may come in any order only where their order cannot matter: in a known store.
    first, second = map(identify, urls)
    assert first == second
    assert not any(secret in first.canonical for secret in secrets)
    assert first.canonical.isascii()
    found = recognise(urls[0])
    assert found is not None
    assert found.presigned
    assert found.key.endswith(key)


@given(key=KEYS, other=KEYS)
def test_two_keys_are_two_tasks(key: str, other: str) -> None:
    same = identify(f"s3://bucket/{key}") == identify(_url("https://bucket.s3.amazonaws.com", other, []))
    assert same == (key == other)


@given(secret=SECRETS, name=st.sampled_from(["token", "sig", "Signature", "X-Amz-Signature", "key", "st", "x"]))
def test_no_unknown_url_puts_a_secret_into_its_canonical_form_or_its_redaction(secret: str, name: str) -> None:
    for url in (
        f"https://u:{secret}@h/a",
        f"https://{secret}@h/a",
        f"https://h/a?{name}={secret}",
        f"https://h/a?{secret}",
        f"https://h/a?{secret}=",
        f"https://h/a?b=1&{name}={secret}#{secret}",
    ):
        assert secret not in identify(url).canonical
        assert secret not in redact(url)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123")), max_size=5),
    st.sets(st.sampled_from("abc")),
)
def test_filters_remove_their_parameters_and_no_others(parameters: list[tuple[str, str]], filters: set[str]) -> None:
    kept = [(name, value) for name, value in parameters if name not in filters]
    assert identify(_url("http://h", "k", parameters), filters=filters) == identify(_url("http://h", "k", kept))


@given(st.one_of(st.text(), st.text("htps:/?#@[]\\=&%.:0123 ").map("http://".__add__)))
def test_no_text_breaks_the_parsers(text: str) -> None:
    redact(text)
    for function in (identify, recognise, origin_key):
        try:
            function(text)
        except BadRequestError:
            continue


def test_signing_parameters_are_in_lower_case() -> None:
    assert set(SIGNING_PARAMETERS) == set(Store) - {Store.HTTP}
    assert all(name == name.lower() for names in SIGNING_PARAMETERS.values() for name in names)
