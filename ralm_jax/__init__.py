"""ralm_jax"""
