"""The core: from pending deliveries to runs of the sync script."""
