"""Reading recordings: ids and masks by hand."""

import numpy as np
import pytest

from janus_jax.errors import DataError
from tests.oracles import recordings


def micro(**fields) -> dict[str, np.ndarray]:
    return {f"step000.0.{name}": np.asarray(value) for name, value in fields.items()}


SFT_ROWS = {
    "input_ids": [[1, 5, 6, 2], [1, 7, 2, 2]],
    "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],  # the last </s> is padding
    "labels": [[-100, -100, 6, 2], [-100, 7, 2, -100]],
}
DPO_ROWS = {
    "input_ids": [[1, 5, 6, 2], [1, 5, 2, 2]],
    "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
    "completion_mask": [[0, 0, 1, 1], [0, 0, 1, 0]],
}
ORPO_ROWS = {  # chosen and rejected are padded apart
    "prompt_input_ids": [[1, 5], [3, 1]],
    "prompt_attention_mask": [[1, 1], [0, 1]],
    "chosen_input_ids": [[1, 5, 6, 2], [1, 7, 2, 3]],
    "chosen_attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
    "chosen_labels": [[-100, -100, 6, 2], [-100, 7, 2, -100]],
    "rejected_input_ids": [[1, 5, 2], [1, 8, 2]],
    "rejected_attention_mask": [[1, 1, 1], [1, 1, 1]],
    "rejected_labels": [[-100, -100, 2], [-100, 8, 2]],
}
RM_ROWS = {
    "input_ids": [[1, 5, 6, 2], [1, 7, 2, 3], [1, 5, 2, 3], [1, 7, 2, 3]],
    "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]],
}


def test_masks_split_sequences_and_padding_goes_by_the_attention_mask():
    first, second = {"prompt": [1, 5], "chosen": [6, 2]}, {"prompt": [1], "chosen": [7, 2]}
    assert recordings.read_steps(micro(**SFT_ROWS)) == ("sft", [[[first, second]]])
    pair = {"prompt": [1, 5], "chosen": [6, 2], "rejected": [2]}
    assert recordings.read_steps(micro(**DPO_ROWS)) == ("dpo", [[[pair]]])


def test_sequences_of_their_own_tensors_are_paired():
    pairs = [
        {"prompt": [1, 5], "chosen": [6, 2], "rejected": [2]},
        {"prompt": [1], "chosen": [7, 2], "rejected": [8, 2]},
    ]
    assert recordings.read_steps(micro(**ORPO_ROWS)) == ("orpo", [[pairs]])


def test_rewards_share_what_sequences_have_in_common_and_keep_a_token_each():
    first = {"prompt": [1, 5], "chosen": [6, 2], "rejected": [2], "margin": 0.0}
    same = {"prompt": [1, 7], "chosen": [2], "rejected": [2], "margin": 0.0}
    assert recordings.read_steps(micro(**RM_ROWS)) == ("rm", [[[first, same]]])


def test_a_sequence_that_begins_another_keeps_its_last_token():
    rows = micro(input_ids=[[1, 5, 6], [1, 5, 3]], attention_mask=[[1, 1, 1], [1, 1, 0]])
    pair = {"prompt": [1], "chosen": [5, 6], "rejected": [5], "margin": 0.0}
    assert recordings.read_steps(rows) == ("rm", [[[pair]]])


def test_margins_are_those_of_their_pairs():
    _, steps = recordings.read_steps(micro(**RM_ROWS, margin=np.asarray([0.5, -1.25], np.float32)))
    assert [pair["margin"] for pair in steps[0][0]] == [0.5, -1.25]


def test_padding_on_the_left_is_taken_off_too():
    rows = micro(input_ids=[[3, 1, 5, 2]], attention_mask=[[0, 1, 1, 1]], labels=[[-100, -100, 5, 2]])
    assert recordings.read_steps(rows) == ("sft", [[[{"prompt": [1], "chosen": [5, 2]}]]])


def test_a_loss_over_the_whole_sequence_starts_at_its_second_token():
    rows = micro(input_ids=[[1, 5, 2]], attention_mask=[[1, 1, 1]], labels=[[1, 5, 2]])
    assert recordings.read_steps(rows) == ("sft", [[[{"prompt": [1], "chosen": [5, 2]}]]])


def test_steps_are_ordered_by_number_and_not_by_name():
    def rows(token):
        return {"input_ids": [[1, token]], "attention_mask": [[1, 1]], "labels": [[-100, token]]}

    keys = [("step1000", 10), ("step999", 9)] + [(f"step{i:03d}", 0) for i in range(999)]
    batches = {f"{step}.0.{name}": np.asarray(v) for step, token in keys for name, v in rows(token).items()}
    _, steps = recordings.read_steps(batches)
    assert [step[0][0]["chosen"] for step in steps[-2:]] == [[9], [10]]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ({}, "steps are numbered \\[\\]"),
        ({"input_ids": np.zeros((1, 2))}, "key 'input_ids'"),
        (
            micro(attention_mask=[[1]]),
            "no known kind: sft has labels, dpo has completion_mask, orpo has chosen_input_ids",
        ),
        (micro(**SFT_ROWS) | {k.replace("000.0", "001.0"): v for k, v in micro(**DPO_ROWS).items()}, "dpo and sft"),
        ({k.replace("000.0", "001.0"): v for k, v in micro(**SFT_ROWS).items()}, "steps are numbered \\[1\\]"),
        ({k.replace("000.0", "000.1"): v for k, v in micro(**SFT_ROWS).items()}, "step 0: microbatches .* \\[1\\]"),
        (micro(**{k: v for k, v in SFT_ROWS.items() if k != "attention_mask"}), "'attention_mask' is missing"),
        (micro(**SFT_ROWS | {"attention_mask": [[1, 1, 1, 1]]}), "step 0, microbatch 0: "),
        (micro(**SFT_ROWS | {"attention_mask": [[1, 1, 1, 1], [0, 0, 0, 0]]}), "all padding"),
        (micro(**SFT_ROWS | {"labels": [[-100, 5, -100, 2], [-100, 7, 2, -100]]}), "to the end of its sequence"),
        (micro(**DPO_ROWS | {"input_ids": [[1, 5, 6, 2], [1, 4, 2, 2]]}), "share their prompt"),
        (micro(**{k: [*v, v[0]] for k, v in DPO_ROWS.items()}), "3 sequences cannot be pairs"),
        (micro(**{k: v for k, v in ORPO_ROWS.items() if k != "rejected_labels"}), "'rejected_labels' is missing"),
        (micro(**ORPO_ROWS | {k: v[:1] for k, v in ORPO_ROWS.items() if k[0] == "r"}), "2 chosen and 1 rejected"),
        (micro(**ORPO_ROWS | {"rejected_input_ids": [[1, 4, 2], [1, 8, 2]]}), "share their prompt"),
        (micro(**ORPO_ROWS | {"chosen_labels": [[-100, 5, -100, 2], [-100, 7, 2, -100]]}), "the end of its sequence"),
        (micro(**ORPO_ROWS | {"rejected_attention_mask": [[1, 1, 1], [0, 0, 0]]}), "all padding"),
        (micro(**{k: v[:3] for k, v in RM_ROWS.items()}), "3 sequences cannot be pairs"),
        (micro(**RM_ROWS, margin=[0.5]), "1 margins cannot be those of 2 pairs"),
        (micro(**RM_ROWS | {"input_ids": [[4, 5, 6, 2], *RM_ROWS["input_ids"][1:]]}), "begin with the same token"),
        (micro(input_ids=[[1, 5], [1, 3]], attention_mask=[[1, 1], [1, 0]]), "begin with the same token and go on"),
        (micro(**{k: v for k, v in RM_ROWS.items() if k != "attention_mask"}), "'attention_mask' is missing"),
    ],
)
def test_what_is_no_recording_is_refused(batches, message):
    with pytest.raises(DataError, match=message):
        recordings.read_steps(batches)
