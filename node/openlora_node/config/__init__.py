"""The configuration room: one frozen `Config` from flags, environment and file. Imports only the protocol."""

from .endpoints import HostPort
from .loader import Loaded, Setting, load
from .problems import ConfigError, Problem
from .schema import Config
from .units import Rate

__all__ = ["Config", "ConfigError", "HostPort", "Loaded", "Problem", "Rate", "Setting", "load"]
