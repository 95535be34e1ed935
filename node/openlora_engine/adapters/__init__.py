"""LoRA adapters from a folder on disk to a slot on the device: validated, cached, loaded, mixed, evicted."""
