"""Update a checkout on this host within about a second after a signed push.

The path of a push: ``receiver`` verifies the webhook, ``journal`` stores the delivery, ``sync`` runs the script, and
``observers`` and ``github`` report the outcome. ``daemon`` connects these parts; ``cli`` has the commands.
docs/design.md explains the layers, and tests/test_layers.py checks them.
"""

__version__ = "0.1.0"
