"""Imports libp2p once and quietly: it uses a deprecated package and logs as errors what any stranger can cause."""

import logging
import warnings

with warnings.catch_warnings():  # libp2p imports a deprecated part of websockets, for a transport that is not used
    warnings.simplefilter("ignore", DeprecationWarning)
    import libp2p  # noqa: F401

for _name in ["libp2p", "multiaddr", *logging.root.manager.loggerDict]:
    if _name.partition(".")[0] in ("libp2p", "multiaddr"):
        logging.getLogger(_name).setLevel(logging.CRITICAL)
