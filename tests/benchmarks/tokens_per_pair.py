"""How many tokens a step computes per pair: packed rows with shared prompts against two padded rows of 2048.

    python -m tests.benchmarks.tokens_per_pair

Sources: lengths like those of the Multifaceted Collection (prompt lognormal with median 330 and sigma 0.5, response
median 520 and sigma 0.55, clipped to 2048), the embedded sample, and pairs of BiGGen Bench answers where
JANUS_REAL_DATA names a directory with them. Every slot of a row is counted, padding too. Pairs that are over-long are
dropped, and counted.
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from janus_jax.data.rows import RowFormat, assign_rows, default_max_segments, fit
from tests.support.real_rows import real_rows

SEQUENCE, ROW = 2048, 4096
PADDED = 2 * SEQUENCE


@dataclasses.dataclass(frozen=True)
class Count:
    """What an epoch of pairs takes."""

    pairs: int
    dropped: int
    rows: int
    fill: float

    @property
    def per_pair(self) -> float:
        """Computed slots of rows per pair."""
        return self.rows * ROW / self.pairs


def stated_lengths(pairs: int, seed: int = 0) -> np.ndarray:
    """[pairs, 3] tokens of prompt, chosen and rejected, drawn like the real ones."""
    rng = np.random.default_rng(seed)
    prompt = rng.lognormal(np.log(330), 0.5, pairs)
    responses = rng.lognormal(np.log(520), 0.55, (pairs, 2))
    return np.clip(np.column_stack([prompt, responses]), 1, SEQUENCE).astype(np.int32)


def count(lengths: np.ndarray, *, share_prompts: bool) -> Count:
    """Plans an epoch as the loader does with batch.rows."""
    form = RowFormat("lm", 2, share_prompts)
    fitted = fit(lengths, row_length=ROW, max_sequence_length=SEQUENCE, overlong="drop", form=form)
    cap = default_max_segments(fitted, ROW)
    rows = assign_rows(fitted.slots, row_length=ROW, max_segments=cap, seed=0, epoch=0)
    return Count(len(fitted.index), fitted.counts["dropped"], len(rows), float(fitted.slots.sum()) / (ROW * len(rows)))


def built_lengths(rows: Path, scratch: Path) -> np.ndarray:
    """Lengths of the training split of rows on disk."""
    from janus_jax.data.build.pipeline import build
    from janus_jax.data.dataset import TokenizedDataset

    build(rows, scratch, kind="dpo")
    return TokenizedDataset(scratch, "train").lengths


def main() -> None:
    table = Table("source", "pairs", "dropped", "fill", "slots/pair", "prompts apart", "two rows of 2048", "fewer")
    with tempfile.TemporaryDirectory() as scratch:
        from janus_jax.data.sample import write_sample

        sources = {
            "stated distribution, seed 0": stated_lengths(65_000),
            "embedded sample": built_lengths(write_sample("dpo", Path(scratch) / "sample"), Path(scratch) / "one"),
        }
        if result := real_rows(Path(scratch)):
            sources["BiGGen Bench answers"] = built_lengths(result.dpo, Path(scratch) / "two")
        for name, lengths in sources.items():
            shared, apart = (count(lengths, share_prompts=share) for share in (True, False))
            table.add_row(
                name,
                f"{shared.pairs:,}",
                f"{shared.dropped:,}",
                f"{shared.fill:.3f}",
                f"{shared.per_pair:,.0f}",
                f"{apart.per_pair:,.0f}",
                f"{PADDED:,}",
                f"{PADDED / shared.per_pair:.2f}x",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
