"""Serving: a compact artifact, and recommendations from it with numpy and safetensors alone.

Models that score by more than an inner product load torch and RecBole when they are used (``by_recbole.py``,
``models.py``); nothing else here needs either.
"""
