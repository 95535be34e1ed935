"""The engine's doors: the OpenAI dialect, adapter routes, health and metrics over one socket."""
