"""The worker's side: one process, one instance of the user's class, and what runs inputs on it."""
