"""Show the status page and its JSON API."""
