"""Darkroom: a self-hosted image service on Stable Diffusion."""

__version__ = "0.1.0"
