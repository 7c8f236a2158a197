"""Infer: answer a file of questions, with or without known answers."""

from ralm_jax.commands.evaluate import infer as main  # noqa: F401
