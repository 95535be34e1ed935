"""The OpenLoRA daemon and gateway. Imports no torch: tensors live in `openlora_engine`, another process."""
