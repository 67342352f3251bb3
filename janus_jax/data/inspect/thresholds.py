"""What `janus data inspect` points at without calling it wrong, and from which share on. Imports nothing heavy."""

import dataclasses
import math
from collections.abc import Iterable

from janus_jax.errors import ConfigError

SHORT = 3
"""Tokens of a very short response, EOS included."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of finding: a share above its threshold is one; for `fill`, a share below it."""

    threshold: float
    share_of: str


KINDS = {
    "dropped": Kind(0.01, "examples that are dropped as over-long, or because a neighbour is (`batch.keep_together`)"),
    "truncated": Kind(0.01, "examples that are over-long and cut, or left without responses"),
    "equal_pairs": Kind(0, "pairs that are dropped because chosen and rejected have the same tokens"),
    "length_bias": Kind(
        0.75, "pairs in which the longer response is the chosen one, or the shorter; the whole 95 % interval counts"
    ),
    "repeated": Kind(0.05, "examples that repeat an earlier one"),
    "repeated_prompts": Kind(0.5, "examples whose prompt stands in an earlier one"),
    "contradicted": Kind(0.01, "pairs that also occur with chosen and rejected swapped"),
    "held_out_in_train": Kind(0, "held-out examples whose prompt is also trained on"),
    "short": Kind(0.05, f"examples with a response of at most {SHORT} tokens, EOS included"),
    "only_eos": Kind(0, "examples with a response of EOS alone"),
    "eos_inside": Kind(0, "examples with EOS inside a response, before its end"),
    "not_served": Kind(0, "examples that a server would not read from an export as they were trained"),
    "merged": Kind(0.01, "compared examples whose prompt and response merge if they are one text"),
    "control_text": Kind(0.01, "compared examples with a text that spells a control token"),
    "other_template": Kind(0, "examples of a template that may be the wrong one for the tokenizer"),
    "unknown": Kind(0.001, "tokens that are the unknown token"),
    "dropped_by_build": Kind(0.01, "records that `janus data build` dropped"),
    "build_notes": Kind(0, "examples that `janus data build` made a note of, for each note"),
    "fill": Kind(0.8, "slots of the rows that hold a token, the emptiest row left out; less than the threshold"),
}
"""In the order of the report."""

HELP = ", ".join(f"{name}={kind.threshold:g}" for name, kind in KINDS.items())


def thresholds(given: Iterable[str] = ()) -> dict[str, float]:
    """The threshold of every kind.

    Args:
        given: texts like `dropped=0.02,fill=0.5`, which replace defaults.
    Raises:
        ConfigError: a text is not of that form.
    """
    values = {name: kind.threshold for name, kind in KINDS.items()}
    for text in given:
        for item in text.split(","):
            name, equals, share = (part.strip() for part in item.partition("="))
            if name not in values or not equals:
                raise ConfigError(f"--look-at {item}: allowed: KIND=SHARE, with a KIND of {', '.join(KINDS)}")
            try:
                values[name] = float(share)
            except ValueError:
                values[name] = math.nan
            if not 0 <= values[name] <= 1:
                raise ConfigError(f"--look-at {item}: allowed: a share from 0 to 1, like {name}=0.05")
    return values
