"""Qwen-Image-Layered in JAX/Flax: one picture in, N editable RGBA layers out."""
