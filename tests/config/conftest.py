import pytest

from tests.support.run_configs import SMALLEST_YAML


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALLEST_YAML)
    return path
