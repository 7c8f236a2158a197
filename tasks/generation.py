"""Tasks whose answers are sentences.

Each takes the arguments of `qa.jsonl_task`.
"""

from __future__ import annotations

from typing import Any

from ralm_jax.tasks import qa


def ms_marco(name: str = 'ms_marco', **task: Any) -> str:
  """MS MARCO NLG (Nguyen et al. 2016): abstractive answers."""
  return qa.jsonl_task(name, **{'record_format': 'ms_marco', **task})


def jeopardy(name: str = 'jeopardy', **task: Any) -> str:
  """Jeopardy question generation (Lewis et al. 2020): the clue of an answer."""
  return qa.jsonl_task(name, **{'record_format': 'jeopardy', **task})
