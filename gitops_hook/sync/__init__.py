"""Turn pending deliveries into runs of the sync script."""
