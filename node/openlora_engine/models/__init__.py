"""Base models: which architectures are served, how they are loaded, where paged attention and LoRA enter them."""
