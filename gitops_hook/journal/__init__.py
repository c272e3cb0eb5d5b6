"""Store deliveries and runs in SQLite."""
