"""Open-Reasoner-Zero (arXiv 2503.24290) as an extension of OpenRLHF."""

__version__ = "0.1.0"
