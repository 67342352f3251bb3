"""Rules between the keys of a configuration, and what it names that is not there."""

import pytest

from janus_jax.config.run import load_config
from janus_jax.errors import ConfigError
from tests.support.run_configs import SMALLEST_YAML


def test_a_mistake_does_not_hide_that_a_directory_is_missing(tmp_path):
    """Where the data is to be read. A missing directory alone is left to its reader, who knows more."""

    small = tmp_path / "small.yaml"
    small.write_text(SMALLEST_YAML)

    def told(*overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_config(small, overrides, inputs=True)
        return str(caught.value).splitlines()[1:]

    typo, here = "batch.rowz=4", f"data.dir={small.parent}"
    missing = "no such directory; `janus data build` makes one"
    assert told(typo, "data.dir=no") == [
        "  override 'batch.rowz=4': batch.rowz: unknown key; did you mean 'batch.rows'?",
        f"  override 'data.dir=no': data.dir = no: {missing}",
    ]
    assert told("data.dir=no", "data.eval_dir=none")[1] == (
        f"  override 'data.eval_dir=none': data.eval_dir = none: {missing}"
    )
    mixture = "data={mixture: [{dir: none, weight: 1}, {dir: gs://b/d, weight: 1}]}"
    assert told(typo, mixture)[1].endswith(f"data.mixture.0.dir = none: {missing}")
    load_config(small, ["data.dir=no"], inputs=True)
    with pytest.raises(ConfigError) as caught:
        load_config(small, [typo, "data.dir=no", here], inputs=True)
    assert "no such directory" not in str(caught.value)
