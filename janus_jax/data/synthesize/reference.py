"""The page of every key of a synthesis:

python -m janus_jax.data.synthesize.reference > docs/synthesis_keys.md
"""

from janus_jax.config.reference import tables
from janus_jax.data.synthesize.config import SynthesisConfig

INTRODUCTION = """\
# Keys of a synthesis

All keys of the file that `janus data synthesize FILE` reads; [how to synthesize](synthesize.md) says what the steps do.
Bases, overrides and YAML are as in the [configuration of a run](configuration.md). `endpoints.NAME` stands for a name
of your own, `instructions.sources.N` for an item of the list.
"""


def page() -> str:
    """docs/synthesis_keys.md."""
    return "\n".join([INTRODUCTION, *tables(SynthesisConfig.model_json_schema())])


if __name__ == "__main__":
    print(page(), end="")
