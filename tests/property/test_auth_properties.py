from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.auth import TOKEN_SECONDS, ClusterSecret, bearer_token
from p2p.errors import UnauthorizedError

SECRET = ClusterSecret(b"0123456789abcdef")
NOW = 1_700_000_000.0
# Every text there is, halves of surrogate pairs included.
ANY_TEXT = st.text(st.characters())
PURPOSES = st.sampled_from(["rpc", "admin", "piece"])


@given(PURPOSES, ANY_TEXT, st.floats(0, 4e9), st.floats(0, TOKEN_SECONDS - 1))
def test_a_signed_token_is_sound(purpose: str, subject: str, now: float, later: float) -> None:
    token = SECRET.sign(purpose, subject, now=now)
    assert SECRET.verify(token, purpose, now=now + later, subject=subject) == subject


@given(ANY_TEXT, st.integers(0), st.sampled_from(["replace", "insert", "delete"]), st.characters())
def test_every_mutation_of_a_token_is_refused(subject: str, at: int, change: str, character: str) -> None:
    token = SECRET.sign("piece", subject, now=NOW)
    at %= len(token)
    mutant = token[:at] + ("" if change == "delete" else character) + token[at + (change != "insert") :]
    if mutant == token:
        return
    with pytest.raises(UnauthorizedError):
        SECRET.verify(mutant, "piece", now=NOW)


@given(
    st.one_of(
        ANY_TEXT,
        st.tuples(PURPOSES, ANY_TEXT, ANY_TEXT, ANY_TEXT).map(".".join),
        st.tuples(PURPOSES, st.text("ab."), st.text("0123456789-+_ \u0661"), st.text("0123456789abcdef")).map(".".join),
    ),
    PURPOSES,
)
def test_no_forged_token_does_more_than_be_refused(token: str, purpose: str) -> None:
    with pytest.raises(UnauthorizedError):
        SECRET.verify(token, purpose, now=NOW)


@given(ANY_TEXT, st.sampled_from(["", "-1", "soon", "1e9", "\u0661", " 1700000100", "9" * 5000]))
def test_an_expiry_that_is_no_number_is_refused_even_if_signed(subject: str, expiry: str) -> None:
    head = f"piece.{subject}.{expiry}"
    with pytest.raises(UnauthorizedError):
        SECRET.verify(f"{head}.{SECRET._mac(head)}", "piece", now=NOW)


@given(ANY_TEXT, ANY_TEXT, PURPOSES, PURPOSES)
def test_a_token_opens_no_other_door(subject: str, other: str, purpose: str, wanted: str) -> None:
    if (subject, purpose) == (other, wanted):
        return
    with pytest.raises(UnauthorizedError):
        SECRET.verify(SECRET.sign(purpose, subject, now=NOW), wanted, now=NOW, subject=other)


@given(ANY_TEXT)
def test_no_header_breaks_the_parser(header: str) -> None:
    try:
        assert bearer_token(header)
    except UnauthorizedError:
        return
