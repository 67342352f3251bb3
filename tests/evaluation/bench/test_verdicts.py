"""The score in a judge's reply: right, or None; never a wrong one."""

import json
import os
from pathlib import Path

import pytest

from janus_jax.evaluation.bench.verdicts import score

RIGHT = [
    ("Poor. [RESULT] score of 1", 1),
    ("**Score: 4**", 4),
    ("**[RESULT]** 4", 4),
    ("Average. [RESULT] 4/5", 4),
    ("[RESULT] \\boxed{4}", 4),
    ('{"feedback": "x", "score": 4}', 4),
    ("[RESULT] an integer number 4", 4),
    ("So the overall score is 4", 4),
    ("Good job. [Score 4]", 4),
    ("Well done. [RESULT] Result: 4", 4),
    ("Needs improvement. [RESULT] Score: 2", 2),
    ("Good job. score: 3", 3),
    ("Rating: [[4]]", 4),
    ("Good job. score of 1", 1),
    ("[SCORE]: 4", 4),
    ("[RESULT] **4**", 4),
    ("[RESULT]4", 4),
    ("[RESULT] [4]", 4),
    ("Good job. [RESULT] (5)", 5),
    # the last explicit marker, whatever the prose says
    ("A score 5 answer would cite sources; this one does not. [RESULT] 3", 3),
    ("A score of 5 needs sources. [RESULT] 3", 3),
    ("[RESULT] 3\nA score of 5 would need sources.", 3),
    ("[RESULT] 3\n\nScore 5: The response is perfect.", 3),
    ("[RESULT] 3. A score of 5 would need sources.", 3),
    ("[RESULT] 3 (a 5 would need sources)", 3),
    ("[RESULT] 3\nResponses with a score of 5 cite.", 3),
    ("[RESULT] 2. On reflection: [RESULT] 4", 4),
    ("Score: 3\nFinal score: 4", 4),
    ("Feedback: (write a feedback) [RESULT] (an integer number between 1 and 5)\nFeedback: fine. [RESULT] 4", 4),
    ("###Reference Answer (Score 5):\nx\n###Feedback:\nfine [RESULT] 2", 2),
    ("<think>perhaps [RESULT] 2</think>Good. [RESULT] 4", 4),
    # forms around the number
    ("[RESULT]: 4 out of 5", 4),
    ("[RESULT] 4 / 5", 4),
    ("[RESULT] **4**/5", 4),
    ("[RESULT] 4.", 4),
    ("[RESULT] 4.0", 4),
    ("[RESULT] 4. The response is good.", 4),
    ("[RESULT] 4\n\n1. Good tone", 4),
    ("[RESULT] - 4", 4),
    ("[RESULT]\n\n4", 4),
    ("[RESULT]:<4>", 4),
    ("[RESULT] The score is 4.", 4),
    ("[RESULT] $\\boxed{4}$", 4),
    ("[RESULT] 4 [END]", 4),
    ("[RESULT: 4]", 4),
    ("[Result] 4", 4),
    ("### RESULT: 4", 4),
    ("<score>4</score>", 4),
    ("**Score**: 4", 4),
    ("Score (1-5): 4", 4),
    ("Score = 4", 4),
    ("Score\uff1a4", 4),
    ("Final score for the response: 4", 4),
    ("Overall rating: **4** out of 5 stars", 4),
    ('```json\n{"feedback": "a score of 5 needs more", "score": "4"}\n```', 4),
    ('{"score": 4, "feedback": "Score: 5 would need sources"}', 4),
    ('{"score": 4.0}', 4),
    ("The overall score is 4. It cites its sources.", 4),
    ("I would give this a score of **4**.", 4),
    # forms that strangers' judges write
    ("**Rating:** 3 out of 5", 3),
    ("[RESULT] 3 (not 4)", 3),
    ("[RESULT] 3 rather than 4", 3),
    ("Score: 4.", 4),
    ("Score: 4\n\nExplanation: 3 of the 5 criteria were met.", 4),
    ("```\nFeedback: fine\nScore: 4\n```", 4),
    ('```json\n{"score": 4}\n```\nThat is all.', 4),
    ('Here it is: {"feedback": "good", "score": 4}', 4),
    ("[RESULT] \uff14", 4),
    ("Score\uff1a\uff14", 4),
    ("[RESULT]\u200b 4", 4),
    ("[RESULT] 4<|im_end|>", 4),
    ("[RESULT] 4</s>", 4),
    ("[RESULT] 5 (five)", 5),
    ("Score [1-5]: 4", 4),
    ("[RESULT] 4 on a scale of 1 to 5", 4),
    ("On a scale of 1 to 5, the score: 4", 4),
    ("Score: 4 von 5", 4),
    ("Score => 4", 4),
    ("[RESULT] 3. It meets 7 out of 10 criteria.", 3),
    # thoughts, however they are marked
    ("perhaps [RESULT] 2</think>\nThe score is 4.", 4),
    ("[THINK]Score: 2[/THINK] The score is 4.", 4),
    ("<think>a<think>b</think>Score: 2</think>Score: 4", 4),
    ("<|channel|>analysis<|message|>Score: 2<|end|><|start|>assistant<|channel|>final<|message|>Score: 4", 4),
    ("Score: 3. Maximum score: 5", 3),
    ("Score: 4 because it meets 3 criteria", 4),
    ("[RESULT] 4 stars", 4),
    ("[RESULT] 4 - Good, but short", 4),
]
NONE = [
    "[RESULT] five",
    "[RESULT] IV",
    "[RESULT] \u2605\u2605\u2605\u2605",
    "[RESULT] \u0664",
    "Score: -3",
    "[RESULT] \u22123",
    "[RESULT] 05",
    "[RESULT] +4",
    "[RESULT] 1e0",
    "[RESULT] Level 4",
    "[RESULT] > 4",
    "[RESULT] < 4",
    "[RESULT] 4?",
    "[RESULT] 4\n[RESULT] N/A",
    '{"result": {"score": 4}}',
    "\u8bc4\u5206\uff1a4",
    "Score (out of 10): 4",
    "Score (1-10): 4",
    "Score (1-3): 2",
    "On a scale of 1 to 10, score: 4",
    "[RESULT] 4 on a scale of 1 to 10",
    "[RESULT] 4 (scale 1-10)",
    "Score: 4 von 10",
    "Score: 4 vs 3",
    "Scores: 4, 3, 5",
    "[RESULT] 3.5 -> 4",
    "[RESULT] not a 3 but a 4",
    "[RESULT] 4 of the 5 criteria are met",
    "Feedback: fine [RESULT]",
    "[RESULT] 4.5",
    "[RESULT] 3-4",
    "",
    "4",
    "It is good.",
    "[RESULT] 10",
    "[RESULT] 0",
    "[RESULT] 6",
    "[RESULT] -4",
    "Score: -1",
    "[RESULT] 45",
    "[RESULT] 4,5",
    "[RESULT] 4½",
    "[RESULT] .5",
    "[RESULT] 3 or 4",
    "[RESULT] 3 \u2013 4",
    "[RESULT] 3~4",
    "[RESULT] **3** or **4**",
    "[RESULT] 3/4",
    "[RESULT] 4, 5",
    "[RESULT] 4 or maybe 5",
    "[RESULT] 4 (or 5)",
    "As a result: 3 errors remain.",
    "[RESULT] The 3 criteria are met",
    "[RESULT] 4 5",
    "[RESULT] 4 to a 5",
    "[RESULT] 4 or five",
    "[RESULT] 4 → 5",
    "[RESULT] 4 points higher",
    "[RESULT] 3 and a score of 4",
    "[[RESULT]] between 3 and 5, so 4",
    "Score: 3 / 4",
    "[RESULT] between 3 and 4",
    "[RESULT] (an integer number between 1 and 5)",
    "[RESULT] (1-5)",
    "[RESULT] 1 to 5",
    "[RESULT] 8/10",
    "[RESULT] 4/10",
    "[RESULT] 4 out of 10",
    "[RESULT] 4/5.5",
    "[RESULT] 4%",
    "[RESULT] 4+",
    "[RESULT] 4th",
    "[RESULT] not 4",
    "[RESULT] The response meets 3 of the criteria",
    "[RESULT] 4 ... [RESULT] none",
    "The score is 4. [RESULT]",
    "[RESULT] N/A",
    "Score: N/A",
    "A score of 5 would need sources; this has none.",
    "A response with a score of 5 cites its sources.",
    "To get a score of 5, it must cite.",
    "Score 1: bad\nScore 2: poor\nScore 5: perfect",
    "Score: 5 answers would cite sources",
    '{"feedback": "x", "score": 4.5}',
    '{"feedback": "x", "score": true}',
    '{"feedback": "x", "score": null}',
    '{"feedback": "x", "score": [4]}',
    '{"score": 4, "rating": 2}',
    '{"feedback": "score: 4"}',
    "<think>[RESULT] 4",
    "The overall score is between 3 and 4",
    "The score is 4.5",
    "Overall score is 3 or 4",
    # thoughts are no verdict
    "[RESULT] 2</think>",
    "<think >Score: 2</think > I give 4",
    "<scratchpad>Score: 2</scratchpad> I'd give it a 4",
    # other scales
    *(
        f"Score: 4{rest}"
        for rest in (" (max 10)", "\n(out of 10)", " of a possible 10", " out of ten", "/ten", " in 10")
    ),
    *(
        f"Score: 4{rest}"
        for rest in (" on a 10-point scale", " out of a total of 10", " percent", "\u2030", "\u221510")
    ),
    *(f"Score ({scale}): 4" for scale in ("max 10", "0..10", "1 through 7", "10-point", "of 10", "%")),
    "Out of 10, Score: 4",
    "On a ten-point scale: Score: 4",
    # ranges, halves, several numbers
    *(
        f"Score: 3{rest}"
        for rest in (" through 4", " oder 4", " (maybe 4)", ", leaning 4", " for style, 4 for content")
    ),
    *(
        f"Score: 3{rest}"
        for rest in (" and a half", "\u20104", "\u223c4", "\u00b11", "\\frac12", "{,}5", "&ndash;4", "\nor 4")
    ),
    "Score: 4 minus 1",
    "Score: 4 lowered to 3",
    "Score: 4 \u21d2 3",
    "Rating: 1 bad 2 poor 3 ok 4 good 5 great",
    "Score: 1 (bad) to 5 (perfect)",
    "[RESULT]\n1. It is kind.\n2. It is fine.",
    "Score:\n1. Tone: 4\n2. Style: 5",
    '{"score": 4, "score": 2}',
    # not a verdict on the answer
    "Score: 5 is too high",
    "Score: 5 if it had sources",
    "RESULT: 3 criteria met",
    "The maximum score is 5.",
    "If it cited sources, the score is 5. It does not.",
    "Maximum score: 5. I cannot judge this.",
    "The reference answer's score is 5. The response gets 2.",
    "- [x] Score: 2\n- [ ] Score: 3",
]


@pytest.mark.parametrize(("reply", "right"), RIGHT)
def test_a_clear_score_is_read(reply, right):
    assert score(reply) == right


@pytest.mark.parametrize("reply", NONE)
def test_what_is_in_doubt_is_no_score(reply):
    assert score(reply) is None


@pytest.mark.skipif("JANUS_JUDGE_REPLIES" not in os.environ, reason="JANUS_JUDGE_REPLIES names no file of replies")
def test_replies_of_real_judges():
    """A JSON list of objects with `reply` and `score`, null where it is in doubt."""
    for one in json.loads(Path(os.environ["JANUS_JUDGE_REPLIES"]).read_text()):
        assert score(one["reply"]) == one["score"], one


def test_a_number_at_the_end_of_a_cut_reply_may_not_be_whole():
    assert score("[RESULT] 1", is_cut=True) is None
    assert score("[RESULT] 4\nand on and on", is_cut=True) == 4
