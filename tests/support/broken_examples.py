"""Prompt, chosen and rejected, each a text or ids: a good example, and bad ones under what the inspector reports."""

GOOD_EXAMPLE = ("What?", "Yes.", "No.")


BROKEN_EXAMPLES = {
    "a response without a token": ("What?", "Yes.", []),
    "does not end with EOS": ("What?", [50, 51], "No."),
    "does not begin with BOS": ([50, 51], "Yes.", "No."),
    "more than one BOS": ([1, 1, 50], "Yes.", "No."),
}
