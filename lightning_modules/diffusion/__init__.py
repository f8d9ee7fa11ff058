"""The mathematics of few-step autoregressive diffusion, as functions of tensors and callables.

Nothing here knows a network class, Lightning or a file: a network is any callable with the
contract of ``lightning_modules/networks/__init__.py``. Shapes are ``[B, F, C, H, W]`` (the frame
axis second), time ``t`` is ``[B, F]`` in ``[0, 1]`` and runs from data (0) to noise (1).
"""
