"""The `gworker` command: run, serve, deploy, operate."""
