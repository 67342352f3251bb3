"""Whether two tokenizers give the same ids, in all that data can use."""

from collections.abc import Iterable

from janus_jax.errors import counted
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.sentencepiece_corpus import sampled_corpus
from janus_jax.text.tokenizer import Tokenizer


def difference(
    one: Tokenizer, other: Tokenizer, control_ids: Iterable[int], names: tuple[str, str] = ("the data", "the model")
) -> str:
    """How the other tokenizer differs from the one of data, in one phrase; empty if data cannot tell them apart.

    Tokens that texts cannot become (a pad token, unused added tokens) may differ.

    Args:
        control_ids: the control tokens that the data uses: BOS, EOS, marks of its template.
        names: what the tokenizers belong to, for the phrase.
    """
    mine, its = names
    if one.fingerprint == other.fingerprint:
        return ""
    for number in control_ids:
        if (ours := one.token(number)) != (theirs := other.token(number)):
            return f"id {number} is {ours!r} in {mine} and {theirs!r} in {its}"
    ours, theirs = one.vocabulary(), other.vocabulary()
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differing:
        shown = ", ".join(
            f"{token!r} is {ours.get(token, 'no token')} in {mine}, {theirs.get(token, 'no token')} in {its}"
            for token in differing[:2]
        )
        other_ids = "has another id" if len(differing) == 1 else "have other ids"
        return f"{counted(len(differing), 'token')} {other_ids}: {shown}"
    for text in sampled_corpus(ours):
        if (ids := one.encode(text)) != (others := other.encode(text)):
            first = next((i for i, pair in enumerate(zip(ids, others, strict=False)) if pair[0] != pair[1]), 0)
            shown = [[one.token(i) for i in some[first : first + 6]] for some in (ids, others)]
            return f"the text {text[:40]!r} has, from token {first}, {shown[0]} in {mine}, {shown[1]} in {its}"
    return ""


def other_prompt(data: ChatFormat, weights: ChatFormat) -> str:
    """How two formats of one template read a prompt, in one phrase; empty if alike."""
    for system, text in (("", "Why?"), ("Be brief.", " Why \n so?")):
        if (ids := data.encode_prompt(system, text)) != (others := weights.encode_prompt(system, text)):
            return f"the prompt {data.text(system, text)!r} is {ids[:6]}... in one, {others[:6]}... in the other"
    return ""
