"""What `gworker bench` measures with: plan, arrivals, callers, a record of what became of calls, and its figures."""
