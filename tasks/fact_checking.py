"""Fact checking: claims that passages support, refute, or leave open.

Each takes the arguments of `qa.jsonl_task`.
"""

from __future__ import annotations

from typing import Any

from ralm_jax.tasks import qa


def fever(name: str = 'fever', **task: Any) -> str:
  """FEVER (Thorne et al. 2018), three ways: true, false or maybe."""
  return qa.jsonl_task(name, **{'record_format': 'fever', **task})


def fever_2way(name: str = 'fever_2way', **task: Any) -> str:
  """FEVER without the claims that lack information."""
  return qa.jsonl_task(name, **{'record_format': 'fever_2way', **task})


def fever_symmetric(name: str = 'fever_symmetric', **task: Any) -> str:
  """FeverSymmetric (Schuster et al. 2019), two ways, without its evidence.

  Training shows passages of the corpus. The evidence sentence of each claim is
  used by `ralm eval --passages_from file` alone.
  """
  return qa.jsonl_task(name, **{'record_format': 'fever_symmetric', **task})
