"""The peer-to-peer network: host, adverts, directory, routing. The only package that imports libp2p or trio."""

from . import quiet as quiet
