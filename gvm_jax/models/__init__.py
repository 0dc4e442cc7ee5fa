"""Qwen2.5 in Flax NNX: the network, its sharding, its log-probabilities, its weights in and out."""
