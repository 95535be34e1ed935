"""A development chain on this machine: no Node.js, no network, keys that everyone knows. Never for money."""
