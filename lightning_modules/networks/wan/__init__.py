"""Wan2.1's transformer with a KV cache: blocks, attention, masks, caches, CUDA graphs."""

NETWORKS = {"WanTransformer3DModel": "transformer.Wan", "TwoTimeWan": "two_time.TwoTimeWan"}
