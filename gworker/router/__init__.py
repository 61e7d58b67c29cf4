"""The caller's side: queues, picks a worker, sends, retries. One router per process and pool."""
