"""Whether two tokenizers give the same ids, in all that data can use."""

from collections.abc import Iterable

from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.sentencepiece_corpus import sampled_corpus
from janus_jax.text.tokenizer import Tokenizer


def difference(
    data: Tokenizer,
    weights: Tokenizer,
    control_ids: Iterable[int],
    names: tuple[str, str] = ("in the data", "in the model"),
) -> str:
    """How the weights' tokenizer differs from the data's, in one phrase; empty if data cannot tell them apart.

    Tokens that texts cannot become (a pad token, unused added tokens) may differ.

    Args:
        control_ids: the control tokens that the data uses: BOS, EOS, marks of its template.
        names: how the phrase calls the two.
    """
    if data.fingerprint == weights.fingerprint:
        return ""
    for number in control_ids:
        if (ours := data.token(number)) != (theirs := weights.token(number)):
            return f"id {number} is {ours!r} {names[0]} and {theirs!r} {names[1]}"
    ours, theirs = data.vocabulary(), weights.vocabulary()
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differing:
        shown = ", ".join(
            f"{token!r} is {ours.get(token, 'no token')} {names[0]}, {theirs.get(token, 'no token')} {names[1]}"
            for token in differing[:2]
        )
        return f"{len(differing):,} tokens have other ids: {shown}"
    for text in sampled_corpus(ours):
        if (ids := data.encode(text)) != (others := weights.encode(text)):
            first = next((i for i, pair in enumerate(zip(ids, others, strict=False)) if pair[0] != pair[1]), 0)
            shown = [[data.token(i) for i in some[first : first + 6]] for some in (ids, others)]
            return f"the text {text[:40]!r} has, from token {first}, {shown[0]} {names[0]}, {shown[1]} {names[1]}"
    return ""


def other_prompt(data: ChatFormat, weights: ChatFormat) -> str:
    """How two formats of one template read a prompt, in one phrase; empty if alike."""
    for system, text in (("", "Why?"), ("Be brief.", " Why \n so?")):
        if (ids := data.encode_prompt(system, text)) != (others := weights.encode_prompt(system, text)):
            return f"the prompt {data.text(system, text)!r} is {ids[:6]}... in one, {others[:6]}... in the other"
    return ""


def other_prompt(data: ChatFormat, weights: ChatFormat) -> str:
    """How two formats of one template read a prompt, in one phrase; empty if alike."""
    for system, text in (("", "Why?"), ("Be brief.", " Why \n so?")):
        if (ids := data.encode_prompt(system, text)) != (others := weights.encode_prompt(system, text)):
            return f"the prompt {data.text(system, text)!r} is {ids[:6]}... in one, {others[:6]}... in the other"
    return ""
