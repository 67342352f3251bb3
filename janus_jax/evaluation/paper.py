"""The numbers of the Janus paper."""

from pathlib import Path
from typing import Any

import yaml


def paper(kind: str) -> dict[str, Any]:
    """One section of `paper.yaml`: where its numbers stand, who judged, the columns, and a list for each model."""
    return yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))[kind]
