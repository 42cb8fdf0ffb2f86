"""Layers, losses and numerics of small networks, many with hand-written derivatives."""
