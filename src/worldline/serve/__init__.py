"""Serving: a world in the browser, over one WebSocket."""
