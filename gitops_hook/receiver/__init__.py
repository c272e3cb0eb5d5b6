"""Receive webhooks: authenticate a delivery and commit it to the journal."""
