"""Many hosts that follow one webhook, with the newest requested state of each repository in etcd."""
