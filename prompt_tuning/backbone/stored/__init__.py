"""Weights in other forms than safetensors, turned into it once and kept in the user's cache."""
