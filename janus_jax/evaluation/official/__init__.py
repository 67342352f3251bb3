"""Files of answers that official tools read."""

from janus_jax.evaluation.official.alpaca_eval import ALPACA_EVAL
from janus_jax.evaluation.official.arena_hard import ARENA_HARD
from janus_jax.evaluation.official.mt_bench import MT_BENCH

TOOLS = {tool.name: tool for tool in (ALPACA_EVAL, MT_BENCH, ARENA_HARD)}
