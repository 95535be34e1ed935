"""Imports libp2p by way of the package that quiets its warnings, before any test does."""

import openlora_node.network  # noqa: F401
