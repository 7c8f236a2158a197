"""KILT's eleven sets (Petroni et al. 2021) as seqio tasks."""

from __future__ import annotations

from typing import Any

from ralm_jax.tasks import qa


def kilt(dataset: str, name: str | None = None, **task: Any) -> str:
  """Registers one set.

  Args:
    dataset: 'fever', 'aida', 'wned', 'cweb', 'trex', 'zsre', 'nq', 'hotpotqa',
      'triviaqa', 'eli5' or 'wow'.
    name: of the task; None for `kilt_{dataset}`.
    **task: arguments of `qa.jsonl_task`.
  """
  return qa.jsonl_task(name or f'kilt_{dataset}', **{'record_format': f'kilt_{dataset}', **task})
