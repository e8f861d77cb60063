"""Streaming: an Engine holds a world's weights, a Session is one walk through it."""
