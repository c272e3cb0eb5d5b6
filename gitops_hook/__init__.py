"""gitops-hook: a signed push arrives, and the checkout on this host follows.

The package is a house of floors, and imports point down only (docs/design.md tells why):
``cli`` over ``daemon`` over ``app`` over ``dispatcher`` over ``journal`` over the ground floor
(``config``, ``logs``, ``repository``, ``runner``, ``server``, ``systemd``, ``webhook``).
"""

__version__ = "0.1.0"
