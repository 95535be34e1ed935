"""How fast the engine is, beside base-only generation, PEFT's mixed batch, vLLM and llama.cpp on the same requests.

`python -m benchmarks.engine` from the repository's root; docs/benchmarks.md says what each figure means.
"""
