"""The `compat:` section of a configuration: what reproduces published trainers, all of it off by default."""

from typing import Literal

from janus_jax.config.section import Section


class CompatSection(Section):
    """Switches that reproduce what the published trainers did. [configs/README.md](../configs/README.md) explains
    when to use them."""

    token_boundary: Literal["separate", "joint"] = "separate"
    """Whether prompt and response are tokenized apart or as one text. It must match how the data was
    built (`janus data build --boundary`)."""
    bos: bool = True
    """Whether prompts begin with BOS, in training and in exports. It must match how the data was built
    (`janus data build --no-bos`)."""
    overlong_pairs: Literal["drop", "zero_grad"] = "drop"
    """zero_grad: pairs longer than `batch.max_sequence_length` lose both responses, and still count in the mean."""
    token_mean: Literal["global", "per_microbatch"] = "global"
    """global: one mean over the batch. per_microbatch: the mean of the microbatches' means, however many tokens (or
    pairs) each has."""
    orpo_padding: Literal["trl", "axolotl"] | None = None
    """Padding in the NLL of ORPO, which is then a mean over all positions of padded rows. trl: TRL 0.8.2 to 0.8.6, with
    one pair a device and microbatch. axolotl: its own trainer, until 19 April 2024, with `flash_attention` and
    `pad_to_sequence_len`. null: padding does not count."""
    bfloat16_weights: bool = False
    """true: weights, and so their updates, are rounded to bfloat16, without a float32 master copy."""
    adamw_8bit: Literal[256, 2048] | None = None
    """Keep moments in 8 bits, as AdamW8bit of bitsandbytes does. The number is that of the elements that share a scale:
    256 from bitsandbytes 0.44 on, 2048 before. null: `optimizer.moments`."""
    embedding_moments: Literal["8bit", "float32"] = "8bit"
    """With `adamw_8bit`: how the moments of the embedding are kept. transformers 5 sets float32; transformers 4.41 set
    it for another class of bitsandbytes only."""
