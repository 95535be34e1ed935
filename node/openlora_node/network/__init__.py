"""The peer-to-peer network: host, adverts, directory, routing. The only package that imports libp2p or trio."""

import logging
import warnings

with warnings.catch_warnings():  # libp2p imports a deprecated part of websockets, for a transport that is not used
    warnings.simplefilter("ignore", DeprecationWarning)
    import libp2p  # noqa: F401

for _name in ["libp2p", "multiaddr", *logging.root.manager.loggerDict]:
    if _name.partition(".")[0] in ("libp2p", "multiaddr"):  # they log what any stranger can cause as errors
        logging.getLogger(_name).setLevel(logging.CRITICAL)
