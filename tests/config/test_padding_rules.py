"""What goes with `compat.orpo_padding`."""

from pathlib import Path

import pytest

from janus_jax.config.run import load_config
from janus_jax.errors import ConfigError

ORPO = Path(__file__).parents[2] / "configs" / "orpo.yaml"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"objective.nll": "response"}, "objective.nll = 'response': allowed with compat.orpo_padding = trl: prompt_"),
        ({"compat.token_mean": "per_microbatch"}, "compat.token_mean = 'per_microbatch': allowed with .*: global"),
        ({"compat.overlong_pairs": "zero_grad"}, "compat.overlong_pairs = 'zero_grad': allowed with .*: drop"),
        ({"batch.overlong": "truncate"}, "batch.overlong = 'truncate': allowed with .*: drop or error"),
        ({"batch.share_prompts": "false"}, "batch.share_prompts = False: allowed with .*: true"),
        ({"precision.attention": "splash"}, "precision.attention = 'splash': allowed with .*: auto or reference"),
    ],
)
def test_what_does_not_go_with_padding_in_the_mean_is_refused(changes, expected):
    orpo = ["compat.orpo_padding=trl"]
    load_config(ORPO, orpo)
    with pytest.raises(ConfigError, match=expected):
        load_config(ORPO, [*orpo, *(f"{key}={value}" for key, value in changes.items())])


def test_another_objective_is_refused():
    with pytest.raises(ConfigError, match="orpo_padding = 'trl': objective sft has no such mean; allowed with: orpo"):
        load_config(ORPO.with_name("sft_65k.yaml"), ["compat.orpo_padding=trl"])
