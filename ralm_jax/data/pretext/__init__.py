"""Objectives of unlabelled text."""

from ralm_jax.data.pretext.objectives import MaskedSpans, PrefixLM, SalientSpans, TitleSection

__all__ = ['MaskedSpans', 'PrefixLM', 'SalientSpans', 'TitleSection']
