"""What style control compares of an answer."""

from janus_jax.evaluation.official.arena_hard import style

ANSWER = """# One
## Two
Some **bold** and __more__ text, 3 * 4 * 5.
- a
* b
1. c
```python
# no header
- no item
```
"""


def test_counts_of_style_leave_code_out():
    facts = style(ANSWER, 12)
    assert list(facts) == ["token_len", "header_count", "list_count", "bold_count"]  # style control reads them in order
    assert facts["token_len"] == 12
    assert facts["header_count"] == {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0}
    assert facts["list_count"] == {"ordered": 1, "unordered": 2} and facts["bold_count"] == {"**": 1, "__": 1}
