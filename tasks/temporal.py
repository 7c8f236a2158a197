"""Questions whose answers change with time.

Each takes the arguments of `qa.jsonl_task`.
"""

from __future__ import annotations

from typing import Any

from ralm_jax.tasks import qa


def templama(name: str = 'templama', **task: Any) -> str:
  """TempLAMA (Dhingra et al. 2022): the sentence asks with `<extra_id_0>`."""
  return qa.jsonl_task(name, **{'record_format': 'templama', **task})
