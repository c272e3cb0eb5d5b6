"""Call GitHub's API: webhooks, audits, commit statuses."""
