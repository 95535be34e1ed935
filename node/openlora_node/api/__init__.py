"""The node's HTTP doors: control socket, health, metrics, and wallet-signed requests beside libp2p."""
