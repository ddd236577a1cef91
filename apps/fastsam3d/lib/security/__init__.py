"""What stands between a request and the datastore, the weights and the logs: see docs/security.md."""
